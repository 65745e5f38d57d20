"""Tokenizers from an attacker: whatever their files say, they load or are refused with an error that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlm.demo import CHECKPOINT
from dlm.errors import CheckpointError, RequestError
from dlm.models.io.tokenizers import guarded
from dlm.text import TextCodec

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        shutil.copy(CHECKPOINT / name, tmp_path / name)
    return tmp_path


def edit(folder: Path, name: str, **changes: Any) -> None:
    value = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**value, **changes}))


def replace(letter: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": letter}, "content": content}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [replace("a", "a" * 50)] * 9}}, "normalizer makes more"),
        ({"decoder": {"type": "Sequence", "decoders": [replace("a", "aa")] * 40}}, "decoder makes more than 64"),
        ({"normalizer": replace("a", "b" * 5000)}, "Replace in normalizer adds 'bbb"),
        ({"normalizer": {"type": "Prepend", "prepend": "b" * 5000}}, "Prepend in normalizer adds 'bbb"),
        ({"normalizer": 5}, "normalizer is 5, not an object"),
        ({"normalizer": {"type": "Sequence", "normalizers": None}}, "normalizer is a Sequence of None"),
        ({"normalizer": {"type": "Precompiled"}}, "type Precompiled, which is not supported"),
        ({"normalizer": replace("", "aa")}, "no usable tokenizer .PanicException"),
        ({"pre_tokenizer": split("(((")}, "no usable tokenizer .Exception: 'Oniguruma"),
        ({"pre_tokenizer": split("(" * 99999)}, "no usable tokenizer"),
        ({"pre_tokenizer": split("(a+)+$")}, "no usable tokenizer .PanicException"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "z", "type_id": 0}}],
                             "pair": [], "special_tokens": {}}}, "no usable tokenizer .PanicException"),
        ({"model": None}, "no usable tokenizer"),
        ({"model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0]]}}, "no usable tokenizer"),
        ({"added_tokens": 5}, "no usable tokenizer"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_blows_up_or_panics_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, "tokenizer.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        TextCodec.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_class": ["x"]}, "tokenizer_class is ..x.., which is no tokenizer"),
        ({"tokenizer_class": "AutoModel"}, "tokenizer_class is 'AutoModel'"),
        ({"tokenizer_class": "AutoTokenizer"}, "tokenizer_class is 'AutoTokenizer'"),
        ({"tokenizer_class": "pipeline\n"}, r"tokenizer_class is 'pipeline\\n'"),
        ({"gguf_file": "/etc/passwd"}, "gguf_file is '/etc/passwd'; leave it out"),
        ({"init_inputs": ["x"]}, "init_inputs is ..x.."),
        ({"added_tokens_decoder": {"9" * 30: {"content": "x"}}}, "added_tokens_decoder is "),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is .1.; ids and tokens"),
        ({"bos_token": 5}, "no usable tokenizer"),
        ({"extra_special_tokens": 5}, "no usable tokenizer"),
        ({"model_max_length": "x"}, "no usable tokenizer"),
    ],
)
def test_settings_that_no_tokenizer_has_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, "tokenizer_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        TextCodec.load(folder)


@pytest.mark.parametrize("template", [5, [{"name": "a", "template": "x"}], [1], "{% for %}", "{{ 'a' * 3000000000 }}"])
def test_a_template_that_cannot_be_used_names_the_folder(folder: Path, template: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder, "tokenizer_config.json", chat_template=template)
    with pytest.raises(CheckpointError, match=rf"{folder.name}: .*(chat template|no usable tokenizer)"):
        TextCodec.load(folder)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("make", [pipe, endless, Path.mkdir, large])
@pytest.mark.parametrize(
    "name", [*FILES, "special_tokens_map.json", "added_tokens.json", "vocab.txt", "tokenizer.model"]
)
def test_files_that_are_none_are_refused_before_they_are_opened(
    folder: Path, name: str, make: Callable[[Path], None]
) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} (is not a regular file|has more than)"):
        TextCodec.load(folder)


def test_a_text_that_the_tokenizer_cannot_take_is_a_fault_of_the_request() -> None:
    class Panic(BaseException):
        """As Rust's, which is no `Exception` and cannot be imported."""

    Panic.__name__ = "PanicException"

    class Panicking:
        chat_template, added_tokens_decoder = None, {}

        def __call__(self, text: str) -> None:
            raise Panic("range end index 9 out of range")

        decode = __call__

    codec = TextCodec(Panicking())
    for use in (codec.encode, codec.encode_literally):
        with pytest.raises(RequestError, match=r"cannot encode the text .PanicException: 'range end"):
            use("a")
    with pytest.raises(KeyboardInterrupt), guarded(RequestError):
        raise KeyboardInterrupt
