"""One tensor as `torch.save` writes it: a zip archive with a pickle that names a storage, and that storage.

Read as data, without `torch.load`: what the pickle says is only looked at, and the archive may hold nothing that is
larger than itself.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dlm._quoting import quoted
from dlm.models.io.dcp.metadata import DTYPES
from dlm.models.io.dcp.pickled import Made, Name, Persistent, PickleError, PickleReader

MAX_PICKLE = 1 << 16
MAX_DIRECTORY = 1 << 16
"""Bytes of an archive's list of files; torch writes half a dozen."""

_REBUILD, _REBUILD_WITH_DTYPE = Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor_v3")

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NAMES = frozenset(
    {
        str(_REBUILD),
        str(_REBUILD_WITH_DTYPE),
        "collections.OrderedDict",
        "torch.storage.UntypedStorage",
        *(f"torch.{name}" for name in (*_STORAGES, *DTYPES)),
    }
)


class Span(io.RawIOBase):
    """`length` bytes of a file from `start`, as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        super().__init__()
        self._file, self._start, self.length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        if base + offset < 0:
            raise OSError("before the beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._start + self._at)
        part = self._file.read(max(0, min(len(view), self.length - self._at)))
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


@dataclass(frozen=True)
class _Layout:
    """What the pickle says of the tensor: a storage of `numel` elements and a view of it."""

    key: str
    numel: int
    dtype: torch.dtype
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


def read_saved_tensor(file: Span) -> Tensor:
    """The tensor of an archive. Raises `PickleError`, `zipfile.BadZipFile` or `OSError` where there is none, alone and
    whole."""
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > file.length:
                raise PickleError(f"{quoted(entry.filename)} is compressed, or larger than the file")
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(entries) != len(archive.infolist()):
            raise PickleError("not one data.pkl, or two files of one name")
        root = pickles[0].removesuffix("data.pkl")
        layout = _layout(PickleReader(_read(archive, entries[pickles[0]], MAX_PICKLE), _NAMES).read())
        order = entries.get(f"{root}byteorder")
        if order is not None and _read(archive, order, 16) != b"little":
            raise PickleError("its numbers are not in little-endian order")
        stored = entries.get(f"{root}data/{layout.key}")
        if stored is None:
            raise PickleError(f"no storage {quoted(layout.key)}")
        if stored.file_size != layout.numel * layout.dtype.itemsize:
            raise PickleError(f"a storage of {stored.file_size} bytes for {layout.numel} numbers")
        storage = torch.empty(layout.numel, dtype=layout.dtype)
        with archive.open(stored) as data:
            _fill(data, storage.view(torch.uint8).numpy().data)
    return storage.as_strided(layout.sizes, layout.strides, layout.offset)


def _fill(data: Any, view: memoryview) -> None:
    at = 0
    while part := data.read(1 << 20):
        view[at : at + len(part)] = part
        at += len(part)
    if at < len(view):
        raise PickleError("a storage that breaks off")


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    if entry.file_size > limit:
        raise PickleError(f"{quoted(entry.filename)} has {entry.file_size} bytes")
    return archive.read(entry)


def _check_directory(file: Span) -> None:
    """Refuse an archive whose list of files is long, before it is read."""
    size = file.seek(0, io.SEEK_END)
    if size < 22:
        raise PickleError("no archive of torch.save")
    file.seek(max(0, size - 98))
    tail = file.read(98) or b""
    end = tail[-22:]
    if end[:4] != b"PK\5\6":
        raise PickleError("no archive of torch.save")
    (directory,) = struct.unpack("<I", end[12:16])
    if tail[-42:-38] == b"PK\6\7":  # the sizes of a large archive stand in a record before that
        (directory,) = struct.unpack("<Q", tail[40:48])
    if directory > MAX_DIRECTORY:
        raise PickleError(f"a list of files of {directory} bytes")
    file.seek(0)


def _layout(root: Any) -> _Layout:
    if not isinstance(root, Made) or root.name not in (_REBUILD, _REBUILD_WITH_DTYPE) or len(root.arguments) < 6:
        raise PickleError(f"{quoted(root)} is not a tensor")
    place, offset, sizes, strides = root.arguments[:4]
    key, name, numel = _storage(place)
    dtype = _STORAGES.get(name.name)
    if root.name == _REBUILD_WITH_DTYPE:
        given = root.arguments[6] if len(root.arguments) > 6 else None
        dtype = DTYPES.get(given.name) if isinstance(given, Name) and given.module == "torch" else None
        if dtype is None or numel % dtype.itemsize:
            raise PickleError(f"a tensor of the dtype {quoted(given)}")
        numel //= dtype.itemsize
    if dtype is None:
        raise PickleError(f"a storage of the type {quoted(name)}")
    numbers = (sizes, strides)
    if not all(isinstance(value, tuple) and len(value) <= 8 and all(map(_whole, value)) for value in numbers):
        raise PickleError(f"a shape of {quoted(sizes)} and strides of {quoted(strides)}")
    if len(sizes) != len(strides) or not _whole(offset):
        raise PickleError(f"a shape of {quoted(sizes)}, strides of {quoted(strides)}, offset {quoted(offset)}")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if 0 not in sizes and last >= numel:
        raise PickleError(f"a view of {quoted(sizes)} that reaches beyond its storage")
    return _Layout(key, numel, dtype, 0 if 0 in sizes else offset, sizes, strides)


def _storage(place: Any) -> tuple[str, Name, int]:
    """Key, type and number of elements of the storage that the pickle names."""
    key = place.key if isinstance(place, Persistent) else None
    if isinstance(key, tuple) and len(key) == 5 and key[0] == "storage":
        _, name, entry, _, numel = key
        if isinstance(name, Name) and isinstance(entry, str) and _whole(numel):
            return entry, name, numel
    raise PickleError(f"{quoted(place)} is not a storage")


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
