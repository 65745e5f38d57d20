"""Distributed checkpoints: written by several ranks, with and without prefixes, and everything that can be wrong."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import Metadata

from dlm.demo import CHECKPOINT
from dlm.errors import CheckpointError
from dlm.models.io.dcp.folder import DcpSource
from dlm.models.io.dcp.metadata import METADATA
from dlm.models.io.loading import load_checkpoint, read_checkpoint_config
from dlm.models.io.model_source import CheckpointSource
from dlm.text import TextCodec
from tests.models.checkpoints import copy_golden, golden_tensors, renamed, save_by_two_ranks, save_dcp
from tests.models.io.test_loading import edit_config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_golden(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("dcp")
    return save_by_two_ranks(scratch / "step_10", scratch)


def load(base: Path, folder: Path, prefix: str | None = None) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(base, weights=DcpSource(folder), prefix=prefix).backbone.named_parameters())


def assert_golden(base: Path, folder: Path, prefix: str | None = None) -> None:
    expected = dict(load_checkpoint(base).backbone.named_parameters())
    found = load(base, folder, prefix)
    assert found.keys() == expected.keys()
    assert all(torch.equal(expected[name], value) for name, value in found.items())


def test_what_two_ranks_wrote_loads_and_the_optimizer_is_not_read(
    base: Path, two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DcpSource(two_ranks)
    assert len(list(two_ranks.glob("*.distcp"))) == 2
    assert any(name.endswith("exp_avg") for name in source.names())
    opened: list[str] = []
    read = DcpSource.read

    def watched(source: DcpSource, name: str) -> torch.Tensor:
        opened.append(name)
        return read(source, name)

    monkeypatch.setattr(DcpSource, "read", watched)
    assert_golden(base, two_ranks)
    assert sorted(opened) == sorted(f"model.{name}" for name in golden_tensors())


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.removeprefix("model."),
        lambda name: name.removeprefix("model.transformer."),
        lambda name: f"model.{name}",
        lambda name: f"state_dict.{name}",
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"state_dict.model._orig_mod.{name}",
        lambda name: f"policy.net.{name}",
        lambda name: name.replace(".q_proj", "._fsdp_wrapped_module.q_proj"),
        lambda name: name.replace(".blocks.0.", ".blocks.0._checkpoint_wrapped_module._orig_mod."),
    ],
    ids=lambda rename: rename("model.transformer.blocks.0.q_proj"),
)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "optimizer"])
def test_any_one_prefix_is_found(base: Path, tmp_path: Path, rename: Callable[[str], str], beside: bool) -> None:
    state: dict[str, Any] = dict(renamed(rename))
    if beside:
        name = rename("model.transformer.ln_f.weight")
        state["optim"] = {"state": {name: {"exp_avg": torch.ones(64), "step": torch.tensor(3.0)}}}
        state[f"optimizer.exp_avg.{name}"] = torch.ones(64)
        state["step"] = torch.tensor(3)
    assert_golden(base, save_dcp(state, tmp_path / "dcp"))


def test_among_several_sets_of_weights_the_plain_one_is_taken_and_another_on_request(
    base: Path, tmp_path: Path
) -> None:
    averaged = {f"ema.{name}": tensor + 1 for name, tensor in golden_tensors().items()}
    folder = save_dcp({**renamed(lambda name: f"model.{name}"), **averaged}, tmp_path / "plain")
    assert_golden(base, folder)
    found = load(base, folder, prefix="ema.model.transformer.")["final_norm.weight"]
    assert torch.equal(found, golden_tensors()["model.transformer.ln_f.weight"] + 1)
    folder = save_dcp({**renamed(lambda name: f"net.{name}"), **averaged}, tmp_path / "unclear")
    with pytest.raises(
        CheckpointError, match=r"several sets .*'ema.model.transformer.', 'net.model.transformer.'; choo"
    ):
        load(base, folder)


def test_a_tied_weight_may_be_stored_twice_and_must_be_the_same_twice(tmp_path: Path) -> None:
    base = copy_golden(tmp_path / "tied")
    edit_config(base, weight_tying=True)
    tensors = golden_tensors()
    tensors["model.transformer.ff_out.weight"] = tensors["model.transformer.wte.weight"].clone()
    backbone = load_checkpoint(base, weights=DcpSource(save_dcp(tensors, tmp_path / "same"))).backbone
    assert torch.equal(backbone.lm_head.weight, tensors["model.transformer.wte.weight"])
    with pytest.raises(
        CheckpointError, match=r"ties model.transformer.ff_out.weight to .*wte.weight, and the two differ"
    ):
        load(base, save_dcp(golden_tensors(), tmp_path / "other"))


def test_the_dtype_is_the_one_asked_for(base: Path, two_ranks: Path) -> None:
    half = load_checkpoint(base, weights=DcpSource(two_ranks), dtype="bfloat16").backbone
    expected = load_checkpoint(base, dtype="bfloat16").backbone
    assert all(torch.equal(value, half.get_parameter(name)) for name, value in expected.named_parameters())


def test_the_prompt_and_the_special_ids_are_those_of_the_base_model(tmp_path: Path) -> None:
    folder = save_dcp(load_file(CHECKPOINT / "model.safetensors"), tmp_path / "dcp")
    routes = [
        CheckpointSource(path="demo"),
        CheckpointSource(path="demo", dcp_path=str(folder)),
        CheckpointSource(dcp_path=str(folder), base_model=str(CHECKPOINT)),
    ]
    assert [route.faults() for route in routes] == [[], [], []]
    codecs = [TextCodec.load(route.tokenizer_folder()) for route in routes]
    assert {codec.encode("How many apples?") for codec in codecs} == {codecs[0].encode("How many apples?")}
    assert all(codec.chat for codec in codecs)
    assert {route.traits()[0].name for route in routes} == {"llada"}
    loaded = [route.load(torch.device("cpu")) for route in routes]
    assert {checkpoint.special for checkpoint in loaded} == {read_checkpoint_config(CHECKPOINT).special}
    for checkpoint in loaded[1:]:
        for name, value in loaded[0].backbone.named_parameters():
            assert torch.equal(checkpoint.backbone.get_parameter(name), value)


def test_foreign_missing_and_misshapen_tensors_are_named(base: Path, tmp_path: Path) -> None:
    tensors = renamed(lambda name: f"model.{name}")
    tensors["model.value_head.weight"] = tensors.pop("model.model.transformer.ln_f.weight")
    with pytest.raises(
        CheckpointError,
        match=r"under the prefix 'model.model.transformer.' are not those of the llada family: "
        r"1 missing \(model.model.transformer.ln_f.weight\), 1 unknown \(model.value_head.weight\)",
    ):
        load(base, save_dcp(tensors, tmp_path / "foreign"))
    tensors["model.model.transformer.ln_f.weight"] = tensors.pop("model.value_head.weight")[:-1].clone()
    with pytest.raises(CheckpointError, match=r"ln_f.weight has shape \[63\], config.json makes it \[64\]"):
        load(base, save_dcp(tensors, tmp_path / "short"))
    other = {f"encoder.layer.{index}.weight": torch.ones(2) for index in range(5)}
    with pytest.raises(CheckpointError, match=r"missing \(model.transformer.* 5 unknown \(encoder.layer.0.weight, "):
        load(base, save_dcp(other, tmp_path / "other"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_dcp({"model": golden_tensors(), "epoch": 3}, tmp_path / "step_1")


def test_a_missing_shard_is_named(base: Path, folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__0_0.distcp is named by .metadata and does not exist; copy every"):
        load(base, folder)


def test_a_missing_shard_of_the_optimizer_alone_does_not_matter(base: Path, two_ranks: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two_ranks, tmp_path / "copy"))
    metadata = pickle.loads((copy / METADATA).read_bytes())
    for index, stored in metadata.storage_data.items():
        if index.fqn.startswith("optimizer."):
            stored.relative_path = "__9_0.distcp"
    (copy / METADATA).write_bytes(pickle.dumps(metadata))
    assert_golden(base, copy)


def test_a_truncated_and_a_damaged_shard_are_named(base: Path, folder: Path) -> None:
    path = folder / "__0_0.distcp"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(
        CheckpointError, match=r"__0_0.distcp has \d+ bytes and .* the copy is incomplete: fetch it again"
    ):
        load(base, folder)
    path.write_bytes(b"\0" * len(whole))
    with pytest.raises(
        CheckpointError,
        match=r"attn_norm.weight cannot be read \('no archive of torch.save'\): .* damaged.*fetch the folder",
    ):
        load(base, folder)


def test_missing_metadata_say_where_they_may_be(base: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{METADATA} does not exist; did you mean {folder}\?"):
        DcpSource(folder.parent)
    (folder / METADATA).rename(folder / f"__0{METADATA}")
    with pytest.raises(CheckpointError, match="each rank wrote metadata of its own"):
        DcpSource(folder)
    (folder / f"__0{METADATA}").unlink()
    with pytest.raises(CheckpointError, match="a save that was cut short has not"):
        DcpSource(folder)
    with pytest.raises(CheckpointError, match="is no folder"):
        DcpSource(folder / "nowhere")


class Harmful:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def test_metadata_cannot_run_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metadata = pickle.loads((folder / METADATA).read_bytes())
    metadata.planner_data = Harmful()
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"it asks for (posix|nt)\.mkdir, which no checkpoint of torch holds"):
        DcpSource(folder)
    assert not (tmp_path / "harm").exists()
    pickle.loads(pickle.dumps(Harmful()))
    assert (tmp_path / "harm").exists(), "the twin without protection must have run it"


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps(Metadata({}))])
def test_metadata_of_another_kind_are_refused(folder: Path, content: bytes) -> None:
    (folder / METADATA).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{METADATA} (cannot be used|is not the metadata)"):
        DcpSource(folder)


def test_metadata_cannot_name_a_file_elsewhere(base: Path, folder: Path) -> None:
    metadata = pickle.loads((folder / METADATA).read_bytes())
    for stored in metadata.storage_data.values():
        stored.relative_path = "../step_1/__0_0.distcp"
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"names '../step_1/__0_0.distcp', which is not a file beside it"):
        load(base, folder)


def test_a_share_that_was_not_saved_is_noticed(base: Path, two_ranks: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two_ranks, tmp_path / "copy"))
    metadata = pickle.loads((copy / METADATA).read_bytes())
    metadata.state_dict_metadata["model.model.transformer.wte.weight"].chunks.pop()
    (copy / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"wte.weight is stored in part only; a rank did not save its share"):
        load(base, copy)


READ_ALL = """
import resource, sys, torch
from pathlib import Path
from dlm.models.io.dcp.folder import DcpSource
source = DcpSource(Path(sys.argv[1]))
targets = {name: torch.zeros(source.shape(name)) for name in source.names()}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, target in targets.items():
    target.copy_(source.read(name))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_reading_holds_a_tensor_or_two_and_not_the_checkpoint(tmp_path: Path) -> None:
    """24 tensors of 8 MiB: reading them into place takes less than a quarter of their 192 MiB besides."""
    folder = save_dcp({f"tensor.{index}": torch.ones(2 * 2**20) for index in range(24)}, tmp_path / "large")
    command = [sys.executable, "-c", READ_ALL, str(folder)]
    extra_kib = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert extra_kib < 48 * 1024
