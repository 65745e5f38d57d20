"""Pickles of torch's metadata and tensors, changed opcode by opcode, field by field, or grown from parts of attacks."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
import random
import struct
import zipfile
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from dlm.models.io.dcp.metadata import NAMES
from tests.fuzzing.mutations import MARK, mutated_bytes

OTHER_NAMES = (
    "os.system",
    "builtins.eval",
    "builtins.setattr",
    "torch.load",
    "pathlib.Path.write_text",
    f"c$({MARK}).x",
)


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return text(module) + text(last) + b"\x93"


def attack(rng: random.Random) -> bytes:
    """A piece of a pickle that leaves one value, made to change what it touches or to take for ever."""
    name = rng.choice(sorted(NAMES)) if rng.random() < 0.9 else rng.choice(OTHER_NAMES)
    slot = rng.choice(("_str", "__truediv__", "exists", "replace", "cache", "__eq__", "__setstate__", "__class__"))
    value = rng.choice((text(MARK), named(rng.choice(sorted(NAMES))), b"N", b"K\x01"))
    return rng.choice(
        (
            named(name),
            named(name) + b"N}" + text(slot) + value + b"s\x86b",  # attributes of a class, as slots
            named(name) + b"}" + text(slot) + value + b"sb",
            named(name) + b")R",
            named(name) + value + b"\x85R",
            named(name) + b")\x81}" + text(slot) + value + b"sb",
            b"}" + b")\x85" + b"\x94h\x00h\x00\x86" * 40 + b"Ns",  # nested tuples as a key
            b"}" + value + value + b"s",
            b"(" * rng.choice((5, 2000)) + b"t",
            b"\x8a\xff" + b"\x7f" * 255,
            b"J\xff\xff\xff\xff",
            rng.choice((b"\x82\x01", b"\x92", b"i", b"o", b"\x8f", b"P0\n", b"I1\n", b"2", b"0", b"1", b"C\x01x")),
        )
    )


def mutated_opcodes(rng: random.Random, content: bytes) -> bytes:
    """A pickle of which opcodes are left out, said twice, exchanged or followed by an attack."""
    starts = [position for _, _, position in pickletools.genops(content) if position is not None]
    parts = [content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)]
    parts = [part for part in parts if part[:1] != b"\x95"]  # frames, whose lengths would be wrong
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(1, len(parts))
        action = rng.randrange(5)
        if action == 0:
            del parts[at]
        elif action == 1:
            parts.insert(at, rng.choice(parts))
        elif action == 2:
            other = rng.randrange(1, len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif action == 3:
            parts.insert(at, attack(rng))
        else:
            parts.insert(at, attack(rng) + b"0")
    return b"".join(parts)


def mutated_metadata(rng: random.Random, metadata: Metadata) -> bytes:
    """The metadata with some fields changed, in any protocol."""
    metadata = copy.deepcopy(metadata)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice([name for name, entry in metadata.state_dict_metadata.items() if hasattr(entry, "chunks")])
        entry: Any = metadata.state_dict_metadata[name]
        index = rng.choice([index for index in metadata.storage_data if index.fqn == name] or [MetadataIndex(name)])
        metadata.storage_data.setdefault(index, _StorageInfo("__0_0.distcp", 0, 1))
        number = rng.choice((-1, 0, 1, 64, 10**9, 2**62, 2**70, 10**30))
        sizes = rng.choice((torch.Size([1]), torch.Size([10**9, 10**9]), (-1, 2), "x", None, [4, 4], (1,) * 9))
        action = rng.randrange(11)
        if action == 0:
            entry.size = sizes
        elif action == 1:
            entry.chunks = rng.choice((entry.chunks * 2, [], None, [None], entry.chunks * 1000))
        elif action == 2:
            entry.chunks[0].offsets = sizes
        elif action == 3:
            entry.chunks[0].sizes = sizes
        elif action == 4:
            entry.properties.dtype = rng.choice((torch.int8, torch.bool, torch.float64, torch.complex64, "x", None))
        elif action == 5:
            paths = ("../x", "/dev/zero", "", ".", "a\0b", MARK, "x" * 5000, 5, "\ud800", "__0_0.distcp/")
            metadata.storage_data[index].relative_path = rng.choice(paths)
        elif action == 6:
            metadata.storage_data[index].offset = number
        elif action == 7:
            metadata.storage_data[index].length = number
        elif action == 8:
            del metadata.storage_data[index]
        elif action == 9:
            metadata.state_dict_metadata[MARK] = rng.choice((entry, None, 5))
        else:
            metadata.planner_data = rng.choice((None, {"a": (1, "b")}, {name: (name,) * 50}))
    return pickle.dumps(metadata, protocol=rng.randrange(2, 6))


def mutated_shard(rng: random.Random, content: bytes) -> bytes:
    """A saved tensor whose pickle, archive or numbers were changed; of the same length or another."""
    if rng.random() < 0.4:
        return mutated_bytes(rng, content)
    source, made = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name in source.namelist():
            body = source.read(name)
            if name.endswith("data.pkl") and rng.random() < 0.8:
                body = mutated_opcodes(rng, body)
            elif rng.random() < 0.1:
                body = rng.choice((b"", body * 2, body[:-1], b"big"))
            if rng.random() > 0.05:
                archive.writestr(rng.choice((name, name, name, name, name, "archive/data.pkl", "../x")), body)
    return made.getvalue()
