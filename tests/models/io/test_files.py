"""Files of a checkpoint that are no files, are too large, or hold no JSON; and how messages quote them."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm._quoting import MOST, named, quoted
from dlm.errors import CheckpointError
from dlm.models.io.files import read_json
from dlm.models.io.loading import load_checkpoint
from tests.models.checkpoints import copy_golden

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_golden(tmp_path / "model")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("make", [pipe, unix_socket, Path.mkdir, endless, circle])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", INDEX, "tokenizer.json"])
def test_what_is_not_a_regular_file_is_never_opened(
    folder: Path, name: str, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text()) if name != "config.json" else None
    if name == "tokenizer.json" and config is not None:
        assert load_checkpoint(folder)
    monkeypatch.chdir(folder)  # a socket's path may have 107 bytes
    make(Path(name))
    if name == INDEX and make is circle:
        return  # does not exist
    if name in ("tokenizer.json", "model.safetensors") and make is circle:
        return
    with pytest.raises(CheckpointError, match=rf"{name}( is not a regular file| cannot be read| does not exist)"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", INDEX, "tokenizer.json"])
def test_a_huge_file_of_json_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    large(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} has more than 64 MiB"):
        load_checkpoint(folder)


def test_a_safetensors_file_with_a_huge_header_is_not_read(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((1 << 26).to_bytes(8, "little") + content[8:])
    with pytest.raises(CheckpointError, match="a header of 67108864 bytes"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "UnicodeDecodeError"),
        ('{"a": 1}'.encode("utf-16"), "UnicodeDecodeError"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands there twice with different values"),
        (b'{"a": ' + b"9" * 5000 + b"}", "ValueError"),
        (b"", "JSONDecodeError"),
        (b"null", "holds a NoneType, not an object"),
    ],
)
def test_what_is_not_json_says_so(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.json .*{message}"):
        read_json(path)


def test_a_key_that_stands_twice_with_one_value_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1], "a": [1]}')
    assert read_json(tmp_path / "x.json") == {"a": [1]}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map is None, not an object"),
        (5, "weight_map is 5, not an object"),
        (["a"], "weight_map is ..a.., not an object"),
        ({"x": None}, "names None, which is not a file beside it"),
        ({"x": 5}, "names 5, which"),
        ({"x": ["a"]}, "names ..a.., which"),
        ({"x": ".."}, "names '..', which"),
        ({"x": ""}, "names '', which"),
        ({"x": "a\0b"}, r"names 'a\\x00b', which"),
        ({"x": "\ud800"}, r"names '\\ud800', which"),
        ({"x": "../model.safetensors"}, "names '../model.safetensors', which"),
        ({"x": "y" * 300}, "names 'yyy.*, which"),
    ],
)
def test_an_index_names_files_beside_it(folder: Path, weight_map: Any, message: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=rf"{INDEX}.*{message}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool])
def test_weights_that_are_not_floating_point_are_refused(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.transformer.ln_f.weight"] = tensors["model.transformer.ln_f.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=rf"ln_f.weight is stored as {str(dtype).removeprefix('torch.')}; quantised weights are not read",
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["$(rm -rf ~)\n\x1b[31m", "x" * 1000, "a." * 400, "\ud7ff\u202e"])
def test_names_of_tensors_are_quoted_and_cut(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors.pop("model.transformer.ln_f.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(folder)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


def test_a_name_that_is_longer_than_any_is_refused(folder: Path) -> None:
    save_file({"a." * 5000: torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="has 10000 characters; no weight is called so"):
        load_checkpoint(folder)


def test_quoting_is_short_whatever_is_quoted() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    twice: Any = ()
    for _ in range(60):
        twice = (twice, twice)
    for value in (deep, twice, 10**10_000, "x" * 10**6, {str(index): index for index in range(9999)}, "\n\x1b\ud800"):
        assert len(quoted(value)) <= MOST + 2
        assert quoted(value).isprintable()
    assert named("model.layers.0.q_proj") == "model.layers.0.q_proj"
    assert named("a b") == "'a b'"
    while deep:  # one level after the other
        (deep,) = deep


def test_a_refused_folder_is_as_it_was(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    shutil.rmtree(folder)
