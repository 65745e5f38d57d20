"""What tells one model from another without reading all of it: digests of its files.

Small files count whole. Of weights count the size, the header of safetensors (names, dtypes, shapes) and blocks spread
evenly over the file, so that other weights of the same shapes are told too; a change of a few values is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

CONFIG_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Configuration and tokenizer of a checkpoint."""
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
DCP_FILES = (".metadata", "*.distcp")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

WHOLE_CONFIG, WHOLE_WEIGHTS = 64 << 20, 1 << 20
"""Bytes up to which a file is read whole."""
BLOCKS, BLOCK = 64, 16 << 10
"""Of a longer one: how many blocks are read, and bytes of each."""
LONGEST_HEADER = 16 << 20


def digests(folder: Path, patterns: Sequence[str], prefix: str = "") -> dict[str, str]:
    """A digest of each file of a folder that one of `patterns` names; what is no file, or cannot be read, has none.

    Args:
        folder: of a checkpoint, a DCP or an adapter.
        patterns: names of files, which may hold `*`.
        prefix: put before the names.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        for path in folder.glob(pattern):
            digest = _digest(path)
            if digest is not None:
                found[f"{prefix}{path.name}"] = digest
    return dict(sorted(found.items()))


def _digest(path: Path) -> str | None:
    is_weights = path.suffix in (".safetensors", ".distcp")
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return None
        with path.open("rb") as file:
            return _digest_of(file, path.stat().st_size, WHOLE_WEIGHTS if is_weights else WHOLE_CONFIG)
    except OSError:  # whoever loads the file will say so
        return None


def _digest_of(file: BinaryIO, size: int, whole: int) -> str:
    total = blake2b(str(size).encode(), digest_size=16)
    if size <= whole:
        total.update(file.read(whole))
        return total.hexdigest()
    length = file.read(8)
    total.update(length + file.read(min(int.from_bytes(length, "little"), LONGEST_HEADER)))
    for number in range(BLOCKS):
        file.seek((size - BLOCK) * number // (BLOCKS - 1))
        total.update(file.read(BLOCK))
    return total.hexdigest()
