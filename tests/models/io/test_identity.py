"""What tells one model from another: its files, sampled where they are long."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm.demo import CHECKPOINT
from dlm.models.io import identity
from dlm.models.io.identity import ADAPTER_FILES, CONFIG_FILES, DCP_FILES, WEIGHT_FILES, digests
from dlm.models.io.model_source import CheckpointSource, RandomSource
from dlm.models.sizes import SIZES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(CHECKPOINT, tmp_path / "model")
    return tmp_path / "model"


def told(folder: Path) -> dict[str, str]:
    return CheckpointSource(str(folder)).identity()


def test_a_copy_is_the_same_model_and_what_is_no_part_of_it_does_not_count(folder: Path) -> None:
    os.utime(folder / "model.safetensors", (0, 0))
    (folder / "README.md").write_text("notes")
    (folder / "trainer_state.json").write_text("{}")
    assert told(folder) == CheckpointSource("demo").identity()
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= told(folder).keys()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_change_of_configuration_or_tokenizer_is_told(name: str, folder: Path) -> None:
    before = told(folder)
    (folder / name).write_text((folder / name).read_text() + " ")
    after = told(folder)
    assert {key for key in before if before[key] != after[key]} == {name}
    (folder / name).unlink()
    assert before.keys() - told(folder).keys() == {name}


def test_other_weights_of_the_same_shapes_are_another_model(folder: Path) -> None:
    before = told(folder)["model.safetensors"]
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    after = told(folder)["model.safetensors"]
    assert after != before
    save_file({f"x{name}": tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert told(folder)["model.safetensors"] != after


def test_long_files_are_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((32).to_bytes(8, "little") + b"h" * 32)
        file.truncate(64 << 30)  # sparse: it takes no room
    first = digests(tmp_path, WEIGHT_FILES)
    with path.open("r+b") as file:
        file.seek(39)
        file.write(b"H")
    second = digests(tmp_path, WEIGHT_FILES)
    with path.open("r+b") as file:
        file.truncate((64 << 30) - 1)
    assert len({str(first), str(second), str(digests(tmp_path, WEIGHT_FILES))}) == 3


def test_what_is_no_file_is_left_to_those_who_load(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "tokenizer.json").mkdir()
    (tmp_path / "merges.txt").symlink_to(tmp_path / "nowhere")
    assert digests(tmp_path, CONFIG_FILES) == {}
    assert digests(tmp_path / "nowhere", DCP_FILES) == {}


def test_adapters_and_distributed_checkpoints_are_part_of_it(folder: Path, tmp_path: Path) -> None:
    names = {
        "dcp": (".metadata", "__0_0.distcp"),
        "lora": ("adapter_config.json", "adapter_model.safetensors"),
        "drafts": ADAPTER_FILES,
    }
    for place, files in names.items():
        (tmp_path / place).mkdir()
        for name in files:
            (tmp_path / place / name).write_bytes(b"\x00" * 8)
    places = {name: str(tmp_path / name) for name in names}
    source = CheckpointSource(
        dcp_path=places["dcp"],
        base_model=str(folder),
        adapter_path=places["lora"],
        drafter_adapter_path=places["drafts"],
    )
    found = source.identity()
    assert "model.safetensors" not in found  # the weights are those of the distributed checkpoint
    for key, place in (("dcp_path", "dcp"), ("adapter_path", "lora"), ("drafter_adapter_path", "drafts")):
        for name in names[place]:
            assert f"{key}/{name}" in found
            (tmp_path / place / name).write_bytes(b"\x01" * 8)
            assert source.identity()[f"{key}/{name}"] != found[f"{key}/{name}"]


def test_random_weights_are_their_shape_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = RandomSource("tiny").identity()
    assert "tokenizer.json" in first
    assert RandomSource("tiny", seed=1).identity() != first
    assert RandomSource("small").identity() != first
    monkeypatch.setitem(SIZES, "tiny", replace(SIZES["tiny"], rope_theta=1.0))
    assert RandomSource("tiny").identity() != first


def test_no_more_is_read_than_blocks_of_a_file(tmp_path: Path) -> None:
    tensor = torch.arange(400_000, dtype=torch.float32)
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > identity.WHOLE_WEIGHTS
    first = digests(tmp_path, WEIGHT_FILES)
    tensor[-1] = 0  # the last block reaches to the end
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    assert digests(tmp_path, WEIGHT_FILES) != first
