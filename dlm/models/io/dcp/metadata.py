"""`.metadata` of a folder of torch.distributed.checkpoint (DCP): which tensors it has and where their parts lie.

The file is a pickle. It is read as data (`dlm.models.io.dcp.pickled`); what it says is checked here, and nothing else
of it is kept. Entries that are not tensors (pickles of the trainer's own) are known by name alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dlm._quoting import named, quoted
from dlm.errors import CheckpointError
from dlm.models.io.dcp.pickled import Made, Name, Pairs, PickleError, PickleReader
from dlm.models.io.files import MIB, beside, read_bytes

METADATA = ".metadata"

MAX_BYTES = 128 * MIB
MAX_DIMENSIONS = 8
MAX_NUMBER = 1 << 62

DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
"""The names that torch has for dtypes."""

_METADATA, _SHARDED = "torch.distributed.checkpoint.metadata", "torch.distributed._shard.sharded_tensor.metadata"
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")

NAMES = frozenset(
    {
        *(
            f"{_METADATA}.{name}"
            for name in (
                "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
                "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
            )
        ),
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        f"{_SHARDED}.TensorProperties",
        f"{_SHARDED}.MEM_FORMAT_ENCODING",
        "torch.serialization._get_layout",
        "torch.Size",
        "collections.OrderedDict",
        "builtins.getattr",  # how Python 3.11.0 to 3.11.3 write a member of an enumeration
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
        *(f"torch.{name}" for name in DTYPES),
    }
)  # fmt: skip
"""Names that torch's own metadata hold."""


@dataclass(frozen=True)
class Place:
    """Where a part of a tensor lies.

    Attributes:
        file: name of the file in the folder.
        start, length: its bytes there.
        transforms: what was done to the bytes, such as compression.
    """

    file: str
    start: int
    length: int
    transforms: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A box of a tensor, `sizes` from `offsets`, and where it lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a DCP folder.

    Attributes:
        chunks: offsets and sizes of the boxes of which it is made.
        places: offsets -> where the box that begins there lies.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    places: Mapping[tuple[int, ...], Place]

    def parts(self) -> list[Part]:
        """The boxes with their places.

        Raises:
            PickleError: they do not make up the tensor: one is missing, overlaps another or lies outside, or a place is
                named for what is none of them.
        """
        volume, whole = sum(math.prod(sizes) for _, sizes in self.chunks), math.prod(self.shape)
        if volume < whole:
            raise PickleError("is stored in part only; a rank did not save its share")
        if not tiled(self.shape, self.chunks):
            raise PickleError("is stored in parts that overlap or lie outside of it")
        found = []
        for offsets, sizes in self.chunks:
            if offsets not in self.places:
                raise PickleError(f"has a part at {list(offsets)}, of which nothing says where it lies")
            found.append(Part(offsets, sizes, self.places[offsets]))
        if len(found) < len(self.places):
            raise PickleError("has a place for a part that it does not have")
        return found


def tiled(shape: tuple[int, ...], boxes: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether boxes (offsets, sizes) cover `shape` exactly once.

    Boxes cover a region equally often as another set does if and only if their corners, each counted with the sign of
    the parity of its far sides, add up to the same: the mixed derivative of both coverings.
    """
    corners: Counter[tuple[int, ...]] = Counter()
    for sign, offsets, sizes in ((-1, (0,) * len(shape), shape), *((1, *box) for box in boxes)):
        for far in product((0, 1), repeat=len(shape)):
            corner = tuple(at + size * side for at, size, side in zip(offsets, sizes, far, strict=True))
            corners[corner] += sign * (-1) ** sum(far)
    return not any(corners.values())


def read_metadata(folder: Path) -> dict[str, StoredTensor]:
    """Name -> tensor. Raises `CheckpointError` where `.metadata` is missing, damaged, or holds what is not known."""
    path = folder / METADATA
    try:
        content = read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; {_remedy(folder)}") from None
    try:
        return _tensors(path, PickleReader(content, NAMES).read())
    except PickleError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from None


def _tensors(path: Path, root: Any) -> dict[str, StoredTensor]:
    if not _is(root, "Metadata"):
        raise PickleError("it is not the metadata of torch.distributed.checkpoint")
    fields = _fields(root)
    entries, others = {}, set()
    for name, entry in _pairs(fields.get("state_dict_metadata"), "state_dict_metadata"):
        if not isinstance(name, str) or name in entries or name in others:
            raise PickleError(f"state_dict_metadata has the key {quoted(name)}, no text or twice")
        if _is(entry, "TensorStorageMetadata"):
            entries[name] = entry
        elif _is(entry, "BytesStorageMetadata"):
            others.add(name)
        else:
            raise PickleError(f"{named(name)} is {quoted(entry)}, neither a tensor nor bytes")
    places: dict[str, dict[tuple[int, ...], Place]] = {name: {} for name in entries}
    for index, info in _pairs(fields.get("storage_data"), "storage_data"):
        if not _is(index, "MetadataIndex"):
            raise PickleError(f"storage_data has the key {quoted(index)}")
        where = _fields(index)
        name, offsets = where.get("fqn"), where.get("offset")
        if isinstance(name, str) and name in places:
            at = _numbers(offsets, f"{named(name)}: the offset of a part")
            if at in places[name]:
                raise PickleError(f"{named(name)} has two places for its part at {list(at)}")
            places[name][at] = _place(path, name, info)
        elif name not in others:
            raise PickleError(f"storage_data has {quoted(name)}, which state_dict_metadata has not")
    return {name: _tensor(name, entry, places[name]) for name, entry in entries.items()}


def _tensor(name: str, entry: Made, places: Mapping[tuple[int, ...], Place]) -> StoredTensor:
    fields = _fields(entry)
    shape = _numbers(fields.get("size"), f"{named(name)}: size")
    chunks = fields.get("chunks")
    if not isinstance(chunks, list):
        raise PickleError(f"{named(name)}: chunks is {quoted(chunks)}")
    if len(chunks) > len(places) + 1:  # also bounds what one list that many tensors share costs
        raise PickleError(f"{named(name)} has {len(chunks)} parts, of which {len(places)} say where they lie")
    boxes = []
    for chunk in chunks:
        if not _is(chunk, "ChunkStorageMetadata"):
            raise PickleError(f"{named(name)}: a part is {quoted(chunk)}")
        parts = _fields(chunk)
        box = tuple(_numbers(parts.get(key), f"{named(name)}: {key} of a part") for key in ("offsets", "sizes"))
        if any(len(numbers) != len(shape) for numbers in box):
            raise PickleError(f"{named(name)}: a part has not the {len(shape)} dimensions of the whole")
        boxes.append((box[0], box[1]))
    return StoredTensor(_dtype(name, fields.get("properties")), shape, tuple(boxes), places)


def _dtype(name: str, properties: Any) -> torch.dtype:
    state = properties.state if _is(properties, "TensorProperties") else None
    if isinstance(state, Pairs):
        state = (_fields(properties).get("dtype"),)
    found = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(found, Name) or found.module != "torch" or found.name not in DTYPES:
        raise PickleError(f"{named(name)} has the dtype {quoted(found)}")
    return DTYPES[found.name]


def _place(path: Path, name: str, info: Any) -> Place:
    if not _is(info, "_StorageInfo"):
        raise PickleError(f"the place of {named(name)} is {quoted(info)}")
    fields = _fields(info)
    start, length = _numbers((fields.get("offset"), fields.get("length")), f"{named(name)}: its place")
    transforms = fields.get("transform_descriptors") or []
    if not isinstance(transforms, list | tuple) or not all(isinstance(step, str) for step in transforms):
        raise PickleError(f"{named(name)}: transform_descriptors is {quoted(transforms)}")
    return Place(beside(path.parent, fields.get("relative_path"), path).name, start, length, tuple(transforms[:8]))


def _is(value: Any, name: str) -> bool:
    """Whether a value is what torch calls so."""
    return isinstance(value, Made) and value.name.name == name


def _fields(made: Made) -> dict[str, Any]:
    return {key: value for key, value in _pairs(made.state, str(made.name)) if isinstance(key, str)}


def _pairs(value: Any, what: str) -> list[tuple[Any, Any]]:
    if not isinstance(value, Pairs):
        raise PickleError(f"{what} is {quoted(value)}, not a dictionary")
    return value.pairs


def _numbers(value: Any, what: str) -> tuple[int, ...]:
    """A `torch.Size` or tuple of whole numbers of at least 0."""
    if isinstance(value, Made) and value.name.name == "Size" and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        raise PickleError(f"{what} is {quoted(value)}")
    if not all(type(number) is int and 0 <= number <= MAX_NUMBER for number in value):
        raise PickleError(f"{what} is {quoted(value)}; whole numbers from 0 are expected")
    return tuple(value)


def _remedy(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder"
    below = sorted(path.parent for path in folder.glob(f"*/{METADATA}"))
    if below:
        return f"did you mean {below[0]}?"
    if any(folder.glob(f"__*{METADATA}")):
        return "each rank wrote metadata of its own (use_collectives=False), which is not supported: save once together"
    return "a DCP folder has it beside its .distcp files, and a save that was cut short has not"
