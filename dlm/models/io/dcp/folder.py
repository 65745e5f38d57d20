"""Folders of `torch.distributed.checkpoint` (DCP): `.metadata` and `*.distcp` shards, written by any number of ranks.

Both hold pickles, which could run code. Neither is unpickled: they are read as data (`dlm.models.io.dcp.metadata`,
`dlm.models.io.dcp.saved_tensor`). Entries that are not tensors (pickles of the trainer's own) are never opened.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dlm._quoting import named, quoted
from dlm.errors import CheckpointError
from dlm.models.io.dcp.metadata import METADATA, Part, read_metadata
from dlm.models.io.dcp.pickled import PickleError
from dlm.models.io.dcp.saved_tensor import Span, read_saved_tensor
from dlm.models.io.files import check_regular, open_regular


class DcpSource:
    """The tensors of a DCP folder, whichever ranks wrote them; a tensor and one shard of it are in memory at a time.

    Raises `CheckpointError` where `.metadata` is missing, damaged, or asks for more than tensors need.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors = read_metadata(folder)

    @property
    def label(self) -> str:
        return str(self.folder)

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def verify(self, names: Iterable[str]) -> None:
        sizes: dict[str, int] = {}
        for name in names:
            for part in self._parts(name):
                place = part.place
                if place.transforms:
                    raise CheckpointError(
                        f"{self.folder}: {named(name)} is stored with the transforms {quoted(place.transforms)}, which "
                        "are not supported; save it without extensions"
                    )
                if place.file not in sizes:
                    sizes[place.file] = self._file_size(place.file)
                if place.start + place.length > sizes[place.file]:
                    raise CheckpointError(
                        f"{self.folder / place.file} has {sizes[place.file]} bytes and {named(name)} ends at byte "
                        f"{place.start + place.length}; the copy is incomplete: fetch it again"
                    )

    def _parts(self, name: str) -> list[Part]:
        try:
            return self._tensors[name].parts()
        except PickleError as error:
            raise CheckpointError(f"{self.folder / METADATA}: {named(name)} {error}") from None

    def _file_size(self, file: str) -> int:
        try:
            return check_regular(self.folder / file)
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.folder / file} is named by {METADATA} and does not exist; copy every .distcp file of the "
                "checkpoint"
            ) from None

    def read(self, name: str) -> Tensor:
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        for part in self._parts(name):
            region = tuple(slice(at, at + size) for at, size in zip(part.offsets, part.sizes, strict=True))
            tensor[region] = self._read(name, part)
        return tensor

    def _read(self, name: str, part: Part) -> Tensor:
        place = part.place
        path = self.folder / place.file
        try:
            with open_regular(path) as file:
                found = read_saved_tensor(Span(file, place.start, place.length))
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist; copy every .distcp file") from None
        # zipfile raises NotImplementedError for methods that it does not know, and RuntimeError for what is encrypted.
        except (PickleError, zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: {named(name)} cannot be read ({quoted(str(error))}): the file is damaged, or holds something "
                "that is not a tensor; fetch the folder again"
            ) from None
        if tuple(found.shape) != part.sizes or found.dtype != self.dtype(name):
            raise CheckpointError(
                f"{path}: {named(name)} has shape {list(found.shape)} and dtype {found.dtype} where {METADATA} says "
                f"{list(part.sizes)} and {self.dtype(name)}; fetch the folder again"
            )
        return found
