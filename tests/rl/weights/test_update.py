"""New weights: checked before anything is written, then exactly those of a fresh load; and weights that sleep."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from dlm.errors import CheckpointError, DLMError, RequestError, RunError
from dlm.models.io.loading import Checkpoint, load_checkpoint, save_checkpoint
from dlm.models.lora.training import Lora, LoraOptions
from dlm.rl import Rollouts
from dlm.rl.weights.update import own_parameters
from tests.rl.subjects import FAMILIES, OPTIONS, PROMPTS, WARM, bits, equal, fresh, rollouts_of, stored
from tests.running import TIMEOUT, environment, torchrun


def saved(checkpoint: Checkpoint, folder: Path) -> Path:
    save_checkpoint(checkpoint.backbone, checkpoint.special, folder, family=checkpoint.family)
    return folder


def params(name: str) -> Any:
    return replace(WARM, gen_length=12, block_length=32) if name == "llada2" else replace(WARM, gen_length=12)


@pytest.mark.parametrize("name", FAMILIES)
def test_after_an_update_rollouts_are_those_of_a_fresh_load(name: str, tmp_path: Path) -> None:
    """Under the family's names, under the backbone's, and from disk."""
    trained = fresh(name, stirred=0.3)
    folder = saved(trained, tmp_path / "trained")
    read = load_checkpoint(folder, special=trained.special)
    expected = Rollouts(read, options=OPTIONS, weight_version=7).generate(PROMPTS, params(name))
    ways: list[Any] = [
        lambda rollouts: rollouts.update_weights(stored(trained), version=7),
        lambda rollouts: rollouts.update_weights(trained.backbone.state_dict(), version=7),
        lambda rollouts: rollouts.update_weights_from_disk(folder, version=7),
    ]
    for update in ways:
        rollouts = rollouts_of(name)
        before = rollouts.generate(PROMPTS, params(name))
        assert {one.weight_version for one in before} == {0}
        update(rollouts)
        after = rollouts.generate(PROMPTS, params(name))
        assert after == expected
        assert {one.weight_version for one in after} == {rollouts.weight_version} == {7}
        assert [one.replay_token_ids for one in after] != [one.replay_token_ids for one in before]
        assert equal(bits(rollouts.checkpoint.backbone), bits(trained.backbone))


@pytest.mark.parametrize("naming", ["family", "own"])
def test_an_adapter_beside_the_weights_is_none_of_what_an_update_brings(naming: str) -> None:
    trained, checkpoint = fresh(stirred=0.3), fresh()
    lora = Lora(checkpoint.backbone, checkpoint.family, LoraOptions(rank=4))
    added = {name: values.clone() for name, values in lora.state_dict().items()}
    given = stored(trained) if naming == "family" else own_parameters(trained.backbone)
    Rollouts(checkpoint, options=OPTIONS).update_weights(given, version=1)
    assert equal(own_parameters(checkpoint.backbone), own_parameters(trained.backbone))
    assert own_parameters(checkpoint.backbone).keys() == lora.weights.keys()
    assert equal(lora.state_dict(), added)


@pytest.mark.parametrize("folder", ["a" * 300, "a/" * 3000, "a\0b", "~nobody-here/a", "/dev/null/a", "\ud800"])
def test_a_folder_that_cannot_be_looked_at_is_named(folder: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        rollouts_of("llada").update_weights_from_disk(folder, version=1)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("naming", "prefix"),
    [("family", ""), ("family", "module."), ("family", "app._orig_mod."), ("own", "backbone."), ("own", "module.")],
)
def test_prefixes_wrappers_optimizers_and_other_dtypes_are_taken(naming: str, prefix: str) -> None:
    trained = fresh(stirred=0.3)
    given = stored(trained) if naming == "family" else dict(trained.backbone.state_dict())
    named: dict[str, Tensor] = {prefix + name: tensor.double() for name, tensor in given.items()}
    named["optimizer.step"] = torch.tensor(3)
    rollouts = rollouts_of()
    rollouts.update_weights(named.items(), version=1)
    assert equal(bits(rollouts.checkpoint.backbone), bits(trained.backbone))


NAMES = list(stored(fresh()))
FIRST, SECOND = NAMES[0], NAMES[1]


def without(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in given.items() if name not in names}


def wrong_weights() -> dict[str, tuple[Any, str]]:
    """What is given, and what the error says of it."""
    good = stored(fresh(stirred=0.3))
    narrow = {name: good[name][:-1] for name in (FIRST, SECOND)}
    return {
        "one missing": (without(good, SECOND), rf"1 missing \({re.escape(SECOND)}\)"),
        "none unknown": (without(good, SECOND), rf"family: 1 missing \({re.escape(SECOND)}\)$"),
        "several missing": (without(good, *NAMES[1:3]), f"2 missing .*{re.escape(NAMES[2])}"),
        "one unknown": ({**good, "model.extra.weight": good[FIRST]}, r"1 unknown \(model.extra.weight\)"),
        "two misshapen": (
            {**good, **narrow},
            f"{re.escape(FIRST)} has shape .*, the model's has .*{re.escape(SECOND)} has shape",
        ),
        "transposed": ({**good, FIRST: good[FIRST].t()}, f"{re.escape(FIRST)} has shape"),
        "integers": ({**good, FIRST: good[FIRST].long()}, f"{re.escape(FIRST)} holds torch.int64"),
        "no tensor": ({**good, SECOND: [1.0]}, f"{re.escape(SECOND)} is a list"),
        "meta": ({**good, SECOND: good[SECOND].to("meta")}, f"{re.escape(SECOND)} is on the meta device"),
        "sparse": ({**good, SECOND: good[SECOND].to_sparse()}, f"{re.escape(SECOND)} has layout torch.sparse_coo"),
        "no name": ([(3, good[FIRST])], "3 is not a name; pass"),
        "twice": ([*good.items(), (FIRST, good[FIRST])], f"{re.escape(FIRST)} is given twice"),
        "nothing": ({}, "missing"),
        "of another family": (stored(fresh("dream")), "missing"),
    }


@pytest.mark.parametrize("case", wrong_weights())
def test_wrong_weights_are_named_and_change_nothing(case: str) -> None:
    given, message = wrong_weights()[case]
    rollouts = rollouts_of()
    before, decoded = bits(rollouts.checkpoint.backbone), rollouts.generate(PROMPTS, WARM)
    with pytest.raises(CheckpointError, match=message):
        rollouts.update_weights(given, version=1)
    assert equal(bits(rollouts.checkpoint.backbone), before)
    assert rollouts.generate(PROMPTS, WARM) == decoded
    assert rollouts.weight_version == 0


@pytest.mark.parametrize("version", [-1, 1.5, "2", True])
def test_versions_are_whole_numbers(version: Any) -> None:
    with pytest.raises(RequestError, match="version="):
        rollouts_of().update_weights(stored(fresh()), version=version)


def test_copies_of_a_tied_weight_must_agree() -> None:
    """The backbone's state dictionary has both names of a tied weight."""
    model = tied(fresh())
    trained = tied(fresh(stirred=0.3))
    rollouts = Rollouts(model, options=OPTIONS)
    given = dict(trained.backbone.state_dict())
    assert "lm_head.weight" in given
    before = bits(model.backbone)
    with pytest.raises(CheckpointError, match=r"ties lm_head.weight to embedding.weight, and the two differ"):
        rollouts.update_weights({**given, "lm_head.weight": given["lm_head.weight"] + 1}, version=1)
    assert equal(bits(model.backbone), before)
    rollouts.update_weights(given, version=1)
    assert equal(bits(model.backbone), bits(trained.backbone))


def tied(checkpoint: Checkpoint) -> Checkpoint:
    from dlm.models.io.loading import empty_backbone

    config = replace(checkpoint.backbone.config, tie_embeddings=True)
    backbone = empty_backbone(config, torch.float32, "cpu")
    backbone.load_state_dict(
        {**checkpoint.backbone.state_dict(), "lm_head.weight": checkpoint.backbone.embedding.weight}
    )
    return Checkpoint(backbone.eval().requires_grad_(False), checkpoint.family, checkpoint.special, None)


# From disk


def test_a_distributed_checkpoint_is_read(tmp_path: Path) -> None:
    trained, rollouts = fresh(stirred=0.3), rollouts_of()
    state = {"model": stored(trained), "optimizer": {"step": torch.tensor(3), "exp_avg": torch.ones(5)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process saves is meant
        dcp.save(state, checkpoint_id=tmp_path / "step_1", no_dist=True)
    rollouts.update_weights_from_disk(tmp_path / "step_1", version=1)
    assert equal(bits(rollouts.checkpoint.backbone), bits(trained.backbone))


def test_a_folder_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    rollouts = rollouts_of()
    before = bits(rollouts.checkpoint.backbone)
    folder = saved(fresh(stirred=0.3), tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    other = saved(fresh("llada"), tmp_path / "other")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none", "no such folder"),
        (folder, "may be truncated"),
        (other, "different architecture"),
        (tmp_path / "empty", "only safetensors are read"),
    ):
        with pytest.raises(CheckpointError, match=message):
            rollouts.update_weights_from_disk(path, version=1)
    assert equal(bits(rollouts.checkpoint.backbone), before)
    assert rollouts.weight_version == 0


# One by one


def test_a_stream_that_breaks_off_is_remembered_until_an_update_succeeds() -> None:
    rollouts, new = rollouts_of(), stored(fresh(stirred=0.3))
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in new.items()}

    def broken(count: int) -> Any:
        yield from list(new.items())[:count]
        raise ConnectionError("the trainer is gone")

    with pytest.raises(ConnectionError):
        rollouts.update_weights_from_stream(shapes, broken(0), version=1)
    assert len(rollouts.generate(PROMPTS, WARM)) == 3
    with pytest.raises(ConnectionError):
        rollouts.update_weights_from_stream(shapes, broken(2), version=1)
    for use in (
        lambda: rollouts.generate(PROMPTS, WARM),
        lambda: rollouts.score((1,), (2,), scheme="ar"),
        lambda: rollouts.replay_logprobs((1,), (2,), (1,)),
    ):
        with pytest.raises(
            RunError, match=r"the weights are a mix of two versions: the update to version 1 failed partway .*gone"
        ):
            use()
    assert rollouts.weight_version == 0
    with pytest.raises(CheckpointError, match="did not arrive"):
        rollouts.update_weights_from_stream(shapes, list(new.items())[1:], version=2)
    rollouts.update_weights_from_stream(shapes, reversed(new.items()), version=2)
    assert rollouts.generate(PROMPTS, WARM)[0].weight_version == 2
    with pytest.raises(CheckpointError, match="was not announced, or arrived twice"):
        rollouts.update_weights_from_stream(shapes, [*new.items(), (FIRST, new[FIRST])], version=3)
    with pytest.raises(CheckpointError, match="was announced as"):
        rollouts.update_weights_from_stream(shapes, [(FIRST, new[FIRST][1:])], version=3)


@pytest.mark.slow
def test_a_group_of_processes_takes_weights_together(tmp_path: Path) -> None:
    """Rank 0 trains; ranks 1 and 2 decode, and one of them can refuse for all."""
    import subprocess

    done = subprocess.run(
        torchrun(3, "tests.rl.group_program", str(tmp_path)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0", "rank1", "rank2"]


# Sleep


@pytest.mark.parametrize("name", ["golden", "moe", "nemotron"])
def test_weights_sleep_and_wake_bit_for_bit(name: str) -> None:
    rollouts = rollouts_of(name)
    backbone = rollouts.checkpoint.backbone
    before, decoded = bits(backbone), rollouts.generate(PROMPTS, WARM)
    strides = [parameter.stride() for parameter in backbone.parameters()]
    assert rollouts._decoder is not None
    assert rollouts._decoder.arena.keys is not None
    rollouts.sleep()
    rollouts.sleep()
    assert rollouts._decoder is None
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 0
    for use in (
        lambda: rollouts.generate(PROMPTS, WARM),
        lambda: rollouts.score((1,), (2,), scheme="ar"),
        lambda: rollouts.update_weights(before, version=1),
    ):
        with pytest.raises(RunError, match=r"asleep: weights.*; call wake\(\)|the weights are asleep; call wake"):
            use()
    rollouts.wake(["weights"])
    assert equal(bits(backbone), before)
    assert [parameter.stride() for parameter in backbone.parameters()] == strides
    with pytest.raises(RunError, match=r"asleep: kv_cache; call wake\(\) first"):
        rollouts.generate(PROMPTS, WARM)
    rollouts.wake()
    rollouts.wake()
    assert rollouts.generate(PROMPTS, WARM) == decoded


def test_the_cache_is_flushed_and_sleeps_alone() -> None:
    rollouts = rollouts_of()
    decoded = rollouts.generate(PROMPTS, WARM)
    rollouts.flush_cache()
    assert rollouts._decoder is None
    assert rollouts.generate(PROMPTS, WARM) == decoded
    rollouts.sleep("kv_cache")
    assert rollouts.score((1,), (2,), scheme="ar").mean.isfinite().all()
    rollouts.update_weights(stored(rollouts.checkpoint), version=1)
    rollouts.wake("kv_cache")
    assert [one.token_ids for one in rollouts.generate(PROMPTS, WARM)] == [one.token_ids for one in decoded]


@pytest.mark.parametrize("call", ["sleep", "wake"])
def test_unknown_tags_are_refused(call: str) -> None:
    with pytest.raises(RequestError, match=r"'cuda_graph' is unknown; known: weights, kv_cache") as caught:
        getattr(rollouts_of(), call)(["weights", "cuda_graph"])
    assert isinstance(caught.value, DLMError)
