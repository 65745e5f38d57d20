"""Every family by every route: distributed checkpoint, conversion there and back, adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlm import convert
from dlm.cli.command_line import compose_config
from dlm.models.io.dcp.folder import DcpSource
from dlm.models.io.loading import load_checkpoint
from dlm.models.io.sources import SafetensorsSource
from tests.models.checkpoints import GOLDEN, save_dcp
from tests.models.io.test_loading import edit_config
from tests.models.lora.test_adapter import write_adapter

FOLDERS = ("llada", "llada_moe", "llada2_moe", "dream", "sdar")


@pytest.fixture(params=FOLDERS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The checkpoint of a family, with a mask id also where the family leaves it to the tokenizer."""
    source, folder = GOLDEN.parent / request.param, tmp_path / "base"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.jsonl", "logits*"))
    if "mask_token_id" not in json.loads((folder / "config.json").read_text()):
        edit_config(folder, mask_token_id=511)
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    source = SafetensorsSource(folder)
    return {name: source.read(name) for name in source.names()}


def assert_same_model(first: torch.nn.Module, second: torch.nn.Module) -> None:
    expected = dict(second.named_parameters())
    found = dict(first.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_distributed_checkpoint_is_the_same_model(base: Path, tmp_path: Path) -> None:
    folder = save_dcp({"state_dict": {"model": tensors_of(base)}}, tmp_path / "dcp")
    assert_same_model(load_checkpoint(base, weights=DcpSource(folder)).backbone, load_checkpoint(base).backbone)


def test_there_and_back_is_the_same_checkpoint(base: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    for overrides in (
        [f"model.path={base}", f"output={there}"],
        [f"model.dcp_path={there}", f"model.base_model={there}", f"output={back}"],
    ):
        assert convert.run(compose_config("convert", [*overrides, "shard_gib=0.0005"]), ()) == 0
    expected, found = tensors_of(base), tensors_of(back)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_adapter_of_every_matrix_is_merged(base: Path, tmp_path: Path) -> None:
    tensors, adapter = tensors_of(base), {}
    generator = torch.Generator().manual_seed(1)
    for name in [name for name, tensor in tensors.items() if tensor.dim() == 2]:
        out, width = tensors[name].shape
        down, up = (torch.randn(shape, generator=generator) for shape in ((4, width), (out, 4)))
        module = f"base_model.model.{name.removesuffix('.weight')}"
        adapter[f"{module}.lora_A.weight"], adapter[f"{module}.lora_B.weight"] = down, up
        tensors[name] = (tensors[name].float() + 4.0 * (up @ down)).to(tensors[name].dtype)
    folder = write_adapter(tmp_path / "lora", adapter)
    found = load_checkpoint(base, adapter=folder).backbone
    for path in base.glob("*.safetensors"):
        stored = load_file(path)
        save_file({name: tensors[name] for name in stored}, path)
    assert_same_model(found, load_checkpoint(base).backbone)
