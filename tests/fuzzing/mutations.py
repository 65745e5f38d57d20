"""Mutations of JSON values and of bytes."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

MARK = "\x1b[31m\nEVIL"
"""Text that no message may show as it is."""

ABSURD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 4.0, 1e-320, -1e9, 1e300, 10**7, 10**9, 10**18, 10**400, float("nan"), float("inf"),
    float("-inf"), "", "4", "x", MARK, "a" * 5000, "../x", "/etc/passwd", "\ud800", "\x00", [], [1], [None], [[]], {},
    {"": None}, {"a": {"b": [1, 2]}}, ["x"] * 50,
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside a value, at most a few of each list."""
    found = [path] if path else []
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:8]))
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def mutated_json(rng: random.Random, value: Any, absurd: list[Any] | None = None) -> Any:
    """A copy of a value, one to three places of it changed, left out or added."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = places(value)
        if not found:
            break
        *head, last = rng.choice(found)
        inner = value
        for key in head:
            inner = inner[key]
        action = rng.random()
        if action < 0.7:
            inner[last] = copy.deepcopy(rng.choice(absurd or ABSURD))
        elif action < 0.85:
            del inner[last]
        elif isinstance(inner, dict):
            inner[rng.choice(("", MARK, "new", str(last) * 50))] = copy.deepcopy(rng.choice(absurd or ABSURD))
        else:
            inner.append(copy.deepcopy(rng.choice(absurd or ABSURD)))
    return value


def written(rng: random.Random, value: Any) -> bytes:
    """JSON, now and then damaged: broken off, of another encoding, nested, with a key twice, or no JSON at all."""
    text = json.dumps(value)
    damage = rng.random()
    if damage < 0.85:
        return text.encode("utf-8", "surrogatepass")
    if damage < 0.88:
        return text.encode("utf-16")
    if damage < 0.91:
        return text.encode()[: rng.randrange(len(text) + 1)]
    if damage < 0.94:
        return (rng.choice(("[", '{"a":')) * rng.choice((50, 5000, 100_000))).encode()
    if damage < 0.97 and text.startswith("{") and len(text) > 2:
        return (text[:-1] + "," + text[1:-1].split(",")[0] + "}").encode("utf-8", "replace")
    return mutated_bytes(rng, text.encode())


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes, some of them changed, left out or said twice."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, count = rng.randrange(len(changed) + 1), rng.choice((1, 1, 4, 50))
        action = rng.randrange(4)
        if action == 0:
            changed[at : at + count] = rng.randbytes(count)
        elif action == 1:
            del changed[at : at + count]
        elif action == 2:
            changed[at:at] = changed[at : at + count]
        else:
            changed[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)))
    return bytes(changed)


def mutated_safetensors(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file with another header: often one that the format allows."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if rng.random() < 0.6:
        return _with_header(_allowed(rng, header), data)
    values = [*ABSURD, "F32", "I8", "BOOL", "F64", "F8_E4M3", "C64", [64], [64, 64], [0, 0], [2**40, 2**40], [0, 256]]
    text = written(rng, mutated_json(rng, header, values))
    length = len(text) if rng.random() < 0.8 else rng.choice((0, 1, 2**31, 2**62, 2**64 - 1))
    return struct.pack("<Q", length) + text + data


def _allowed(rng: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """The header with other names, shapes and dtypes of the same sizes."""
    names = [name for name in header if name != "__metadata__"]
    for name in rng.sample(names, rng.choice((1, 1, 2))):
        entry, action = header[name], rng.randrange(5)
        if action == 0:
            entry["dtype"] = "I32"
        elif action == 1:
            first, *rest = entry["shape"]
            entry["dtype"], entry["shape"] = rng.choice((("BOOL", [first * 4, *rest]), ("F16", [first * 2, *rest])))
        elif action == 2:
            entry["shape"] = rng.choice((entry["shape"][::-1], [1, *entry["shape"]]))
        elif action == 3:
            header[rng.choice((MARK, "x" * 5000, "a." * 2000, f"{name}\0", "model." + name))] = header.pop(name)
        else:
            header["__metadata__"] = rng.choice(({MARK: MARK}, {}, {"format": "x"}))
    return header


def _with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data
