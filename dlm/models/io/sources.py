"""Named tensors on disk, read one at a time: what loading and converting have in common.

A source knows names, shapes and dtypes without reading a tensor, and nothing about models. Nothing that is read is
executed: safetensors hold no code, and `dlm.models.io.dcp.folder` says how it treats what does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlm._quoting import named, quoted, reason
from dlm.errors import CheckpointError
from dlm.models.io.files import MIB, beside, open_regular, read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names that the safetensors format has for dtypes."""

MAX_HEADER = 32 * MIB
"""Bytes of the list of tensors of one file; it has a hundred or so for each."""


class NameSource(Protocol):
    """Something that knows what its tensors are called."""

    @property
    def label(self) -> str:
        """What messages call it: its path."""

    def names(self) -> Sequence[str]:
        """Names of all tensors, in the order in which they are read fastest."""


class TensorSource(NameSource, Protocol):
    """Tensors by name. Every method raises `CheckpointError` for what is missing, truncated or unreadable."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of a tensor, without reading it."""

    def verify(self, names: Iterable[str]) -> None:
        """Check that the files that hold `names` are there, before the first is read."""

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU in its stored dtype and shape; the caller drops it before it reads the next."""


class SafetensorsSource:
    """The safetensors of a folder: one file, or shards with an index. One file is open (mapped) at a time.

    Args:
        folder: holds `model.safetensors` or `model.safetensors.index.json`.
        single: name of the file where it is not a model's.
    """

    def __init__(self, folder: Path, single: str = SINGLE) -> None:
        self.folder = folder
        self._path: Path | None = None
        self._file: Any = None
        self._files = self._find(folder / single)

    @property
    def label(self) -> str:
        return str(self.folder)

    def names(self) -> Sequence[str]:
        return sorted(self._files, key=lambda name: (self._files[name].name, name))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        stored = self._slice(name).get_dtype()
        if stored not in SAFETENSORS_DTYPES:
            raise CheckpointError(
                f"{self._files[name]}: {named(name)} has dtype {named(stored)}, which is not supported"
            )
        return SAFETENSORS_DTYPES[stored]

    def verify(self, names: Iterable[str]) -> None:
        for name in names:
            self._slice(name)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._open(self._files[name]).get_tensor(name)
        return tensor

    def read_span(self, name: str, axis: int, start: int, stop: int) -> Tensor:
        """`[start, stop)` of a tensor along `axis` (-1 or -2); the rest of it is not copied."""
        within = slice(start, stop)
        tensor: Tensor = self._slice(name)[(..., within) if axis == -1 else (..., within, slice(None))]
        return tensor

    def _find(self, single: Path) -> dict[str, Path]:
        """Tensor name -> file."""
        index = self.folder / INDEX
        if single.name == SINGLE and index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(
                    f"{index}: weight_map is {quoted(weight_map)}, not an object of tensors and files"
                )
            return {name: beside(self.folder, file, index) for name, file in weight_map.items()}
        if not single.exists():
            choices = f"neither {SINGLE} nor {INDEX}" if single.name == SINGLE else f"no {single.name}"
            raise CheckpointError(f"{self.folder} has {choices}; only safetensors are read")
        return dict.fromkeys(self._open(single).keys(), single)

    def _slice(self, name: str) -> Any:
        path = self._files[name]
        file = self._open(path)
        try:
            return file.get_slice(name)
        except SafetensorError:
            raise CheckpointError(f"{path} lacks {named(name)}, which the index says it holds") from None

    def _open(self, path: Path) -> Any:
        if path != self._path:
            self._path, self._file = None, None
            try:
                with open_regular(path) as file:
                    header = int.from_bytes(file.read(8), "little")
                if header > MAX_HEADER:
                    raise CheckpointError(f"{path} cannot be read as safetensors: a header of {header} bytes")
                self._file = safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError:
                raise CheckpointError(
                    f"{path} is named by the index and does not exist; the download is incomplete"
                ) from None
            except (SafetensorError, OSError, MemoryError) as error:
                raise CheckpointError(
                    f"{path} cannot be read as safetensors ({reason(error)}); it may be truncated: fetch it again"
                ) from None
            self._path = path
        return self._file
