"""Parts of a model: they are cut where they should be, read alone, and their sums are what the whole model gives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore, PrefixStore, Store

from dlm.distributed.group import ParallelGroup
from dlm.errors import ConfigError, RunError
from dlm.models.attention import SdpaAttention
from dlm.models.attention.segments import Segment
from dlm.models.io.dcp.folder import DcpSource
from dlm.models.io.loading import Checkpoint, load_checkpoint, random_checkpoint, save_checkpoint
from dlm.models.io.sources import SafetensorsSource
from dlm.models.sharding import Shard, check_divisible
from dlm.models.sizes import SIZES
from tests.models.checkpoints import copy_golden, golden_tensors, save_dcp
from tests.models.lora.test_adapter import MODULES, halves, write_adapter
from tests.rounding import of_a_forward, of_products
from tests.running import TIMEOUT

TINY = ["tiny", "tiny_moe", "tiny_llada2", "tiny_dream", "tiny_sdar", "tiny_nemotron"]


def in_threads(size: int, work: Callable[[ParallelGroup], Any]) -> list[Any]:
    """What `work` gives in each of `size` ranks, threads of this process."""
    store, results = HashStore(), [None] * size

    def one(rank: int, store: Store) -> None:
        with torch.inference_mode():
            results[rank] = work(ParallelGroup(store, rank, size, loopback=True))

    threads = [threading.Thread(target=one, args=(rank, PrefixStore("test", store))) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert all(result is not None for result in results)
    return results


@dataclass
class Counted:
    """A group's sum that counts its calls."""

    group: ParallelGroup
    calls: int = 0

    def __call__(self, partial: Tensor) -> Tensor:
        self.calls += 1
        return self.group.total(partial)


def hidden(checkpoint: Checkpoint, tokens: int = 13) -> Tensor:
    """Hidden states of one window."""
    token_ids = (torch.arange(tokens) * 37 + 11) % 900
    attention = SdpaAttention([Segment(row=0, rows=tokens)])
    with torch.inference_mode():
        result: Tensor = checkpoint.backbone(token_ids, torch.arange(tokens), attention)
    return result


def parameters(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return dict(checkpoint.backbone.named_parameters())


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    theirs = parameters(other)
    assert parameters(one).keys() == theirs.keys()
    for name, values in parameters(one).items():
        assert torch.equal(values, theirs[name]), name


@pytest.mark.parametrize("name", TINY)
def test_a_part_read_from_disk_is_the_cut_of_the_whole(name: str, tmp_path: Path) -> None:
    whole = random_checkpoint(name, seed=3)
    save_checkpoint(whole.backbone, whole.special, tmp_path, family=whole.family)
    for rank in range(2):
        shard = Shard(rank, 2)
        part = load_checkpoint(tmp_path, shard=shard)
        assert_equal(part, random_checkpoint(name, seed=3, shard=shard))
        for parameter, values in parameters(whole).items():
            cut = shard.cut(parameter, whole.backbone.config)
            expected = values if cut is None else cut.of(values)
            assert torch.equal(parameters(part)[parameter], expected), parameter


def test_parts_hold_half_of_every_layer() -> None:
    """All but norms and router; of a fused projection a half of queries, of keys and of values each."""
    whole, part = (
        parameters(random_checkpoint("tiny_llada2")),
        parameters(random_checkpoint("tiny_llada2", shard=Shard(1, 2))),
    )
    for name, values in whole.items():
        split = name.startswith("layers.") and "norm" not in name and "router" not in name
        assert part[name].numel() * (2 if split else 1) == values.numel(), name
    heads = whole["layers.0.qkv.weight"].unflatten(0, (8, 16))  # 4 queries, 2 keys, 2 values
    assert torch.equal(part["layers.0.qkv.weight"], heads[[2, 3, 5, 7]].flatten(0, 1))


def test_only_the_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = copy_golden(tmp_path / "model"), []
    whole_read = SafetensorsSource.read
    monkeypatch.setattr(SafetensorsSource, "read", lambda self, name: read.append(name) or whole_read(self, name))
    load_checkpoint(folder, shard=Shard(0, 2))
    assert read
    assert not [name for name in read if "blocks" in name and "norm" not in name]


def test_a_part_of_a_distributed_checkpoint_is_that_of_safetensors(tmp_path: Path) -> None:
    folder = copy_golden(tmp_path / "model")
    save_dcp(golden_tensors(), tmp_path / "dcp")
    for rank in range(2):
        part = load_checkpoint(folder, weights=DcpSource(tmp_path / "dcp"), shard=Shard(rank, 2))
        assert_equal(part, load_checkpoint(folder, shard=Shard(rank, 2)))


def test_an_adapter_is_merged_before_the_cut(tmp_path: Path) -> None:
    folder = copy_golden(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", halves(MODULES[::2]))
    whole = load_checkpoint(folder, adapter=adapter)
    for rank in range(2):
        part = parameters(load_checkpoint(folder, adapter=adapter, shard=Shard(rank, 2)))
        for name, values in parameters(whole).items():
            cut = Shard(rank, 2).cut(name, whole.backbone.config)
            assert torch.equal(part[name], values if cut is None else cut.of(values)), name


@pytest.mark.parametrize("name", TINY)
def test_two_sums_a_layer_give_the_whole_models_states(name: str) -> None:
    whole = hidden(random_checkpoint(name, dtype="float64"))

    def work(group: ParallelGroup) -> tuple[Tensor, int]:
        part, total = random_checkpoint(name, dtype="float64", shard=Shard(group.rank, 2)), Counted(group)
        part.backbone.sum_with(total)
        return hidden(part), total.calls

    (first, calls), (second, more_calls) = in_threads(2, work)
    assert calls == more_calls == 2 * SIZES[name].num_layers
    assert torch.equal(first, second)
    rounding = of_a_forward(SIZES[name], torch.float64, len(whole)) * float(whole.abs().max())
    torch.testing.assert_close(first, whole, rtol=0, atol=rounding)


@pytest.mark.parametrize("size", [2, 4])
def test_a_rows_sum_does_not_depend_on_its_batch(size: int) -> None:
    """Bitwise, in all ranks, also where more than two numbers are added."""
    parts = [torch.randn(24, 64, generator=torch.Generator().manual_seed(rank)) for rank in range(size)]

    def work(group: ParallelGroup) -> list[Tensor]:
        own = parts[group.rank]
        return [group.total(own.clone()), torch.cat([group.total(own[at : at + 4].clone()) for at in range(0, 24, 4)])]

    sums = [result for results in in_threads(size, work) for result in results]
    assert all(torch.equal(sums[0], other) for other in sums[1:])
    rounding = of_products(torch.float32, size) * float(torch.stack(parts).abs().sum(0).max())
    torch.testing.assert_close(sums[0], torch.stack(parts).sum(0), rtol=0, atol=rounding)


def test_sums_of_half_precision() -> None:
    sums = in_threads(2, lambda group: group.total(torch.full((4, 8), 1.5 + group.rank, dtype=torch.bfloat16)))
    assert all(torch.equal(each, torch.full((4, 8), 4.0, dtype=torch.bfloat16)) for each in sums)


def test_messages_numbers_and_the_smallest() -> None:
    def work(group: ParallelGroup) -> tuple[object, ...]:
        told = {"seed": 7} if group.leads else "not mine to tell"
        none = None if group.leads else "neither"
        return group.message(told), group.message(none), group.number(5 + group.rank), group.smallest(10 - group.rank)

    assert in_threads(3, work) == [({"seed": 7}, None, 5, 8)] * 3


def test_a_process_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm.distributed.group.GATHERING", 0.1)
    with pytest.raises(RunError, match=r"over 3 processes: rank 0, rank 2 did not come within 0 s"):
        ParallelGroup(HashStore(), 1, 3)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("tiny", 3, "num_heads=4, num_kv_heads=4; it can be 1, 2, 4"),
        ("tiny_dream", 4, "num_kv_heads=2; it can be 1, 2"),
        ("tiny_llada2", 3, "num_heads=4, num_kv_heads=2, intermediate_size=128, experts.inner_size=32, experts.shared"),
        ("8b", 0, "must be at least 1"),
    ],
)
def test_a_size_that_does_not_divide_the_model_is_refused(name: str, size: int, words: str) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel_size={size} .*{words}"):
        check_divisible(SIZES[name], size)
