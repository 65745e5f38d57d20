"""The kinds of input: how a folder of each is made, whether its first parse succeeds, and what reads it."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.distributed.checkpoint.metadata import Metadata

from dlm.chat.environment import ChatEnvironment
from dlm.demo import CHECKPOINT
from dlm.errors import CheckpointError
from dlm.models.io.dcp.folder import DcpSource
from dlm.models.io.dcp.metadata import METADATA, NAMES
from dlm.models.io.dcp.pickled import PickleReader
from dlm.models.io.files import read_json
from dlm.models.io.loading import load_checkpoint
from dlm.models.io.tokenizers import guarded
from dlm.models.lora.adapter import write_adapter
from dlm.text import TextCodec
from tests.fuzzing import mutations, pickles, templates
from tests.models.checkpoints import copy_golden, golden_tensors, save_dcp

SHARD = "__0_0.distcp"


@dataclass(frozen=True)
class Bases:
    """Valid folders, made once, and what is in them."""

    model: Path
    sharded: Path
    dcp: Path
    adapter: Path
    tokenizer: Path
    metadata: Metadata

    @classmethod
    def make(cls, root: Path) -> Bases:
        model, sharded = copy_golden(root / "model"), copy_golden(root / "sharded")
        names = sorted(golden_tensors())
        parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
        for file, members in parts.items():
            save_file({name: golden_tensors()[name] for name in members}, sharded / file)
        index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
        (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
        (sharded / "model.safetensors").unlink()
        dcp = save_dcp({**golden_tensors(), "epoch": 3}, root / "dcp")
        weight = "model.transformer.blocks.0.q_proj.weight"
        write_adapter(
            root / "adapter", {weight: (torch.ones(4, 64), torch.ones(64, 4))}, rank=4, alpha=8.0, base="owner/name"
        )
        tokenizer = root / "tokenizer"
        tokenizer.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(CHECKPOINT / name, tokenizer / name)
        return cls(model, sharded, dcp, root / "adapter", tokenizer, pickle.loads((dcp / METADATA).read_bytes()))


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        base: the folder that is changed.
        file: the file in it that is.
        change: its new content.
        parses: raises where the first parse of the file fails; None where there is none to fail.
        read: the reader under test.
    """

    base: Callable[[Bases], Path]
    file: str
    change: Callable[[random.Random, Bases, bytes], bytes]
    parses: Callable[[Path], Any] | None
    read: Callable[[Bases, Path], Any]

    def make(self, rng: random.Random, bases: Bases, folder: Path) -> None:
        base = self.base(bases)
        folder.mkdir()
        for path in base.iterdir():
            if path.name != self.file:
                (folder / path.name).symlink_to(path)
        (folder / self.file).write_bytes(self.change(rng, bases, (base / self.file).read_bytes()))

    def parsed(self, folder: Path) -> bool:
        """Whether the first parse of the changed file succeeds; not where there is none."""
        if self.parses is None:
            return False
        try:
            with guarded(CheckpointError):
                self.parses(folder / self.file)
        except CheckpointError:
            return False
        return True


class SpecialFile(Kind):
    """Any file of a folder, exchanged for what is no file, or is too large."""

    def make(self, rng: random.Random, bases: Bases, folder: Path) -> None:
        base = self.base(bases)
        names = sorted(path.name for path in base.iterdir())
        chosen = rng.choice([*names, "added_tokens.json", "adapter_config.json"])
        folder.mkdir()
        for path in base.iterdir():
            if path.name != chosen:
                (folder / path.name).symlink_to(path)
        path = folder / chosen
        kind = rng.randrange(8)
        if kind == 0:
            os.mkfifo(path)
        elif kind == 1:
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(os.path.relpath(path))
        elif kind == 2:
            path.mkdir()
        elif kind == 3:
            path.symlink_to(rng.choice(("/dev/zero", "/dev/tty", "/dev/full", "/proc/self/mem", "/dev/stdin")))
        elif kind == 4:
            path.symlink_to(rng.choice((path.name, "nowhere", "/nowhere/at/all")))
        elif kind == 5:
            path.touch()
            os.truncate(path, rng.choice((0, 1, 2**27, 2**40)))
        elif kind == 6:
            path.write_bytes(rng.randbytes(rng.choice((1, 8, 5000))))
        else:
            path.symlink_to(rng.choice(("/etc/passwd", "/proc/self/environ", "..", "/")))


def _changed_json(rng: random.Random, bases: Bases, content: bytes) -> bytes:
    return mutations.written(rng, mutations.mutated_json(rng, json.loads(content)))


def _changed_adapter(rng: random.Random, bases: Bases, content: bytes) -> bytes:
    settings = {
        **json.loads(content),
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"q_proj": 3},
        "use_rslora": False,
    }
    values = [*mutations.ABSURD, {"((.*)*)*x": 2}, {"(a|a)*" * 20: 2}, {"(": 1}, {"q_proj": "x"}, {"x" * 9999: 1},
              {"(?:(?:a{999}){999}){999}": 1}, {"q_proj": float("nan")}, {"(((.*)*)*)*)y": -1}]  # fmt: skip
    return mutations.written(rng, mutations.mutated_json(rng, settings, values))


def _changed_tokenizer(rng: random.Random, bases: Bases, content: bytes) -> bytes:
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}
    steps = {"type": "Sequence", "normalizers": [replace] * 30, "decoders": [replace] * 30}
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    values = [
        *mutations.ABSURD,
        replace,
        steps,
        split,
        {"type": "NFC"},
        {"type": "ByteLevel"},
        {"type": mutations.MARK},
    ]
    whole = json.loads(content)
    if rng.random() < 0.5:
        return json.dumps({**whole, **_another_step(rng)}).encode()
    small = {key: value for key, value in whole.items() if key != "model"}
    changed = mutations.mutated_json(rng, small, values)
    changed["model"] = whole["model"]
    if rng.random() < 0.3:
        parts = ({"vocab": {"a": 0}}, {"merges": [["x", "y"]]}, {"type": "Unigram"}, {"dropout": 5}, {"unk_token": 3},
                 {"continuing_subword_prefix": "x" * 99})  # fmt: skip
        changed["model"] = {**whole["model"], **rng.choice(parts)}
    return mutations.written(rng, changed)


def _another_step(rng: random.Random) -> dict[str, Any]:
    """A part of a tokenizer that the format allows."""
    replace = {"type": "Replace", "pattern": {"String": rng.choice("a1 ")}, "content": rng.choice(("", "b", "a" * 20))}
    several = [replace] * rng.choice((1, 2, 5, 40))
    regex = rng.choice((r"\w+", "(a+)+$", "(a|a)*!", "((a{99}){99}){99}", "(?=(a+))a*b", r"\s*$", "(a*)*(b*)*c"))
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    token = {"id": rng.choice((3, 9999)), "content": rng.choice(("a", mutations.MARK, "", "<|eot_id|>")),
             "special": True, "single_word": False, "lstrip": True, "rstrip": True, "normalized": True}  # fmt: skip
    return rng.choice(
        (
            {"normalizer": {"type": "Sequence", "normalizers": several}},
            {"decoder": {"type": "Sequence", "decoders": several}},
            {"normalizer": rng.choice(({"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "<"}))},
            {"pre_tokenizer": split},
            {"pre_tokenizer": None},
            {"added_tokens": [token]},
            {"padding": {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "x"}},
            {"truncation": {"direction": "Right", "max_length": rng.choice((0, 1)), "strategy": "LongestFirst",
                            "stride": 0}},
            {"post_processor": None},
        )
    )  # fmt: skip


def _changed_metadata(rng: random.Random, bases: Bases, content: bytes) -> bytes:
    action = rng.random()
    if action < 0.5:
        return pickles.mutated_metadata(rng, bases.metadata)
    if action < 0.9:
        return pickles.mutated_opcodes(rng, content)
    return mutations.mutated_bytes(rng, content)


def _changed_shard(rng: random.Random, bases: Bases, content: bytes) -> bytes:
    places = [info for info in bases.metadata.storage_data.values() if info.length > 1000]
    place = rng.choice(places)
    end = place.offset + place.length
    new = pickles.mutated_shard(rng, content[place.offset : end])
    return content[: place.offset] + new[: place.length].rjust(place.length, b"\0") + content[end:]


def _read_text(bases: Bases, folder: Path) -> None:
    codec = TextCodec.load(folder)
    messages = [{"role": "user", "content": "Sort <|mdm_mask|> aaaa 12.\n <|eot_id|>"}]
    codec.decode(codec.encode(messages if codec.chat else "Sort 12."))


def _template_parses(path: Path) -> None:
    ChatEnvironment().from_string(path.read_text())


def _open_safetensors(path: Path) -> None:
    with safe_open(path, framework="pt"):
        pass


def _load(bases: Bases, folder: Path) -> None:
    load_checkpoint(folder)


def _load_special(bases: Bases, folder: Path) -> None:
    if (folder / METADATA).exists() or METADATA in os.listdir(folder):
        load_checkpoint(bases.model, weights=DcpSource(folder))
    elif "tokenizer_config.json" in os.listdir(folder):
        _read_text(bases, folder)
    else:
        load_checkpoint(folder, adapter=folder if "adapter_config.json" in os.listdir(folder) else None)


def _with_dcp(bases: Bases, folder: Path) -> None:
    load_checkpoint(bases.model, weights=DcpSource(folder))


def _with_adapter(bases: Bases, folder: Path) -> None:
    load_checkpoint(bases.model, adapter=folder)


KINDS: dict[str, Kind] = {
    "metadata": Kind(lambda bases: bases.dcp, METADATA, _changed_metadata,
                     lambda path: PickleReader(path.read_bytes(), NAMES).read(), _with_dcp),
    "shard": Kind(lambda bases: bases.dcp, SHARD, _changed_shard, None, _with_dcp),
    "safetensors": Kind(lambda bases: bases.model, "model.safetensors",
                        lambda rng, bases, content: mutations.mutated_safetensors(rng, content), _open_safetensors,
                        _load),
    "index": Kind(lambda bases: bases.sharded, "model.safetensors.index.json", _changed_json, read_json, _load),
    "config": Kind(lambda bases: bases.model, "config.json", _changed_json, read_json, _load),
    "adapter": Kind(lambda bases: bases.adapter, "adapter_config.json", _changed_adapter, read_json, _with_adapter),
    "adapter weights": Kind(lambda bases: bases.adapter, "adapter_model.safetensors",
                            lambda rng, bases, content: mutations.mutated_safetensors(rng, content), _open_safetensors,
                            _with_adapter),
    "tokenizer": Kind(lambda bases: bases.tokenizer, "tokenizer.json", _changed_tokenizer,
                      lambda path: Tokenizer.from_file(str(path)), _read_text),
    "tokenizer config": Kind(lambda bases: bases.tokenizer, "tokenizer_config.json", _changed_json, read_json,
                             _read_text),
    "template": Kind(lambda bases: bases.tokenizer, "chat_template.jinja",
                     lambda rng, bases, content: templates.template(rng).encode(), _template_parses, _read_text),
    "special model": SpecialFile(lambda bases: bases.model, "", lambda *_: b"", None, _load_special),
    "special shards": SpecialFile(lambda bases: bases.sharded, "", lambda *_: b"", None, _load_special),
    "special dcp": SpecialFile(lambda bases: bases.dcp, "", lambda *_: b"", None, _load_special),
    "special text": SpecialFile(lambda bases: bases.tokenizer, "", lambda *_: b"", None, _load_special),
}  # fmt: skip
