"""A drafter's adapter: rows that draft see the weights with it, all others the weights without, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlm import convert
from dlm.cli.command_line import compose_config
from dlm.config.checks import check_predict
from dlm.distributed.group import ParallelGroup
from dlm.errors import CheckpointError, ConfigError
from dlm.models.arithmetic import TiledArithmetic
from dlm.models.arrangement import with_arithmetic
from dlm.models.attention import SdpaAttention
from dlm.models.attention.segments import Segment
from dlm.models.backbone import CACHE_TILE, Backbone
from dlm.models.families import NEMOTRON
from dlm.models.io.loading import load_checkpoint, random_checkpoint, save_checkpoint
from dlm.models.io.model_source import CheckpointSource, RandomSource
from dlm.models.io.naming import family_shapes
from dlm.models.lora.drafter import Drafter
from dlm.models.sharding import Shard
from dlm.models.sizes import SIZES
from tests.models.checkpoints import copy_golden
from tests.models.lora.test_adapter import write_adapter
from tests.models.test_sharding import in_threads

SIZE = "tiny_nemotron"
TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
PUBLISHED = "self_attn.o_proj"
"""What the released adapters change, in every layer."""


def write_drafter(folder: Path, *targets: str, rank: int = 3, strength: float = 1.0) -> Path:
    """A random adapter of the tiny Nemotron under PEFT's names; `strength` is that of what it adds."""
    generator, tensors = torch.Generator().manual_seed(rank), {}
    shapes = family_shapes(NEMOTRON, SIZES[SIZE])
    modules = [name.removesuffix(".weight") for name in shapes if name.removesuffix(".weight").endswith(targets)]
    for module in modules:
        out, width = shapes[f"{module}.weight"]
        down, up = (torch.randn(size, generator=generator) * 0.1 for size in ((rank, width), (out, rank)))
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = strength * up
    return write_adapter(folder, tensors, r=rank, lora_alpha=4 * rank)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nemotron")
    made = random_checkpoint(SIZE, seed=3)
    save_checkpoint(made.backbone, made.special, folder, family=NEMOTRON)
    return folder


def hidden(backbone: Backbone, lengths: list[int], drafting: list[bool] | None) -> Tensor:
    """Hidden states of windows that see themselves, some of which draft."""
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    positions = torch.cat([torch.arange(length) for length in lengths])
    flags = None if drafting is None else torch.tensor(drafting).repeat_interleave(torch.tensor(lengths))
    attention = SdpaAttention([Segment(*each) for each in zip(starts, lengths, strict=True)])
    with torch.inference_mode():
        return backbone((positions * 37 + 11) % 900, positions, attention, drafts=flags)


@pytest.mark.parametrize("targets", [*((target,) for target in TARGETS), TARGETS], ids=[*TARGETS, "all"])
def test_rows_that_draft_see_the_merged_weights(base: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    folder = write_drafter(tmp_path / "lora", *targets)
    plain = hidden(load_checkpoint(base, dtype="float64").backbone, [13], None)
    merged = hidden(load_checkpoint(base, dtype="float64", adapter=folder).backbone, [13], None)
    both = load_checkpoint(base, dtype="float64", drafter=folder).backbone
    torch.testing.assert_close(hidden(both, [13], [True]), merged, rtol=0, atol=1e-9)
    assert (merged - plain).abs().max() > 0.01
    assert torch.equal(hidden(both, [13], [False]), plain)
    assert torch.equal(hidden(both, [13], None), plain)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [1, 3, 8, 17])
def test_no_row_sees_what_the_others_do(base: Path, tmp_path: Path, rank: int, dtype: str) -> None:
    """Windows of both kinds in one batch, more than one tile of it: the bits of each alone."""
    backbone = load_checkpoint(
        base, drafter=write_drafter(tmp_path / "lora", *TARGETS, rank=rank), dtype=dtype
    ).backbone
    lengths, drafting = [7, 32, CACHE_TILE, 1, 33], [True, False, True, False, True]
    together = hidden(backbone, lengths, drafting).split(lengths)
    for length, drafts, mine in zip(lengths, drafting, together, strict=True):
        assert torch.equal(mine, hidden(backbone, [length], [drafts]))
        if not drafts:
            assert torch.equal(mine, hidden(backbone, [length], None))


def test_a_model_with_another_arithmetic_drafts_the_same(base: Path, tmp_path: Path) -> None:
    backbone = load_checkpoint(base, drafter=write_drafter(tmp_path / "lora", *TARGETS), dtype="float64").backbone
    copy = with_arithmetic(backbone, TiledArithmetic(32))
    lengths, drafting = [7, 32], [True, False]
    torch.testing.assert_close(hidden(copy, lengths, drafting), hidden(backbone, lengths, drafting))
    assert copy.layers[0].drafter["qkv"].up.arithmetic is not backbone.layers[0].drafter["qkv"].up.arithmetic
    assert copy.layers[0].drafter["qkv"].up.weight.data_ptr() == backbone.layers[0].drafter["qkv"].up.weight.data_ptr()


def test_parts_of_a_model_draft_as_the_whole(base: Path, tmp_path: Path) -> None:
    folder = write_drafter(tmp_path / "lora", *TARGETS)
    lengths, drafting = [7, 32], [True, False]
    whole = hidden(load_checkpoint(base, drafter=folder, dtype="float64").backbone, lengths, drafting)

    def work(group: ParallelGroup) -> Tensor:
        part = load_checkpoint(base, drafter=folder, dtype="float64", shard=Shard(group.rank, 2)).backbone
        part.sum_with(group.total)
        return hidden(part, lengths, drafting)

    for mine in in_threads(2, work):
        torch.testing.assert_close(mine, whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("targets", [(PUBLISHED,), TARGETS], ids=["published", "all"])
def test_its_size_is_known_before_it_is_read(base: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    folder = write_drafter(tmp_path / "lora", *targets)
    backbone = load_checkpoint(base, drafter=folder).backbone
    held = sum(parameter.nbytes for name, parameter in backbone.named_parameters() if "drafter" in name)
    assert held > 0
    assert Drafter.read(folder, NEMOTRON, backbone.config).num_bytes(torch.float32) == held
    assert CheckpointSource(path=str(base), drafter_adapter_path=str(folder)).drafter_bytes() == held
    assert CheckpointSource(path=str(base)).drafter_bytes() == RandomSource(SIZE).drafter_bytes() == 0


def test_a_source_finds_it_inside_the_checkpoint(base: Path) -> None:
    """As the released repositories have it."""
    write_drafter(base / "linear_spec_lora", PUBLISHED)
    source = CheckpointSource(path=str(base), drafter_adapter_path="linear_spec_lora")
    assert source.faults() == []
    assert source.load(torch.device("cpu")).backbone.has_drafter
    assert not CheckpointSource(path=str(base)).load(torch.device("cpu")).backbone.has_drafter
    hub = CheckpointSource(path="owner/name", revision="abc", drafter_adapter_path="linear_spec_lora")
    assert hub.faults() == []


def test_what_is_not_in_the_place_named_is_said() -> None:
    for path, given in (("demo", "nowhere"), ("owner/name", "/nowhere")):
        revision = None if path == "demo" else "abc"
        (fault,) = CheckpointSource(path=path, revision=revision, drafter_adapter_path=given).faults()
        assert fault == f"model.drafter_adapter_path={given}: no such folder, nor one inside {path}"


def test_what_does_not_fit_is_named(base: Path, tmp_path: Path) -> None:
    folder = write_drafter(tmp_path / "head", "diffusion_head", PUBLISHED)
    with pytest.raises(CheckpointError, match=r"drafter_adapter_path=.*changes diffusion_head.weight; .* dense layers"):
        load_checkpoint(base, drafter=folder)
    with pytest.raises(CheckpointError, match=r"drafter_adapter_path=.*nowhere: no such folder"):
        load_checkpoint(base, drafter=tmp_path / "nowhere")
    other = copy_golden(tmp_path / "llada")
    with pytest.raises(CheckpointError, match="drafts of linear_spec, which llada models do not run; leave it out, or"):
        load_checkpoint(other, drafter=folder)
    wrong = {"base_model.model.encoder.layers.0.self_attn.o_proj.lora_A.weight": torch.ones(4, 63),
             "base_model.model.encoder.layers.0.self_attn.o_proj.lora_B.weight": torch.ones(64, 4)}  # fmt: skip
    with pytest.raises(CheckpointError, match=r"o_proj.lora_A.weight has shape \[4, 63\]; rank 4 on a weight of"):
        load_checkpoint(base, drafter=write_adapter(tmp_path / "shape", wrong))


def test_where_nothing_drafts_it_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write_drafter(tmp_path / "lora", PUBLISHED)
    given = [f"model.path={base}", f"model.drafter_adapter_path={folder}"]
    check_predict(compose_config("predict", ["model=checkpoint", *given, "algorithm=linear_spec"]))
    with pytest.raises(
        ConfigError, match=r"drafter_adapter_path=.*only linear_spec drafts; write algorithm=linear_spec"
    ):
        check_predict(compose_config("predict", ["model=checkpoint", *given, "algorithm=nemotron"]))
    with pytest.raises(ConfigError, match="a drafter's adapter is not merged"):
        convert.run(compose_config("convert", [*given, f"output={tmp_path / 'out'}"]), ())
