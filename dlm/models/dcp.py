"""Folders of `torch.distributed.checkpoint` (DCP): `.metadata` and `*.distcp` shards, written by any number of ranks.

`.metadata` is a pickle, which could run code. It is read by an unpickler that knows the classes that torch writes
there and refuses every other name. Shards are read by torch with `weights_only=True`. Entries that are not tensors
(pickles of the trainer's own) are never opened.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from dlm.errors import CheckpointError

METADATA = ".metadata"

ALLOWED: dict[str, frozenset[str]] = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed._shard.sharded_tensor.metadata": frozenset({"TensorProperties", "MEM_FORMAT_ENCODING"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch": frozenset({"Size"}),
    "collections": frozenset({"OrderedDict"}),
    "pathlib": frozenset({"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"}),
    "pathlib._local": frozenset({"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"}),
}
"""Module -> names that `.metadata` may ask for: values without behaviour. Dtypes of torch are allowed besides."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in ALLOWED.get(module, frozenset()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint of torch holds")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Torch's reader with metadata that are read already."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self.set_up_storage_reader(metadata, is_coordinator=True)


class DcpSource:
    """The tensors of a DCP folder, whichever ranks wrote them; a tensor and one shard of it are in memory at a time.

    Raises `CheckpointError` where `.metadata` is missing, damaged, or asks for more than tensors need.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metadata = _read_metadata(folder)
        self._tensors = {
            name: entry
            for name, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._reader = _Reader(folder, self._metadata)

    @property
    def label(self) -> str:
        return str(self.folder)

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].size)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].properties.dtype

    def verify(self, names: Iterable[str]) -> None:
        sizes: dict[str, int] = {}
        for name in names:
            held = 0
            for chunk in self._tensors[name].chunks:
                held += math.prod(chunk.sizes)
                stored = self._metadata.storage_data.get(MetadataIndex(name, chunk.offsets))
                if stored is None:
                    raise CheckpointError(f"{self.folder / METADATA} does not say where a part of {name} lies")
                file = stored.relative_path
                if file not in sizes:
                    sizes[file] = self._file_size(file)
                if stored.offset + stored.length > sizes[file]:
                    raise CheckpointError(
                        f"{self.folder / file} has {sizes[file]} bytes and {name} ends at byte "
                        f"{stored.offset + stored.length}; the copy is incomplete: fetch it again"
                    )
            if held < math.prod(self._tensors[name].size):
                raise CheckpointError(f"{self.folder}: {name} is stored in part only; a rank did not save its share")

    def _file_size(self, file: str) -> int:
        path = self.folder / file
        if Path(file).name != file:
            raise CheckpointError(f"{self.folder / METADATA} names {file!r}, which is not a file beside it")
        if not path.is_file():
            raise CheckpointError(
                f"{path} is named by {METADATA} and does not exist; copy every .distcp file of the checkpoint"
            )
        return path.stat().st_size

    def read(self, name: str) -> Tensor:
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner({name: tensor}, self._metadata, is_coordinator=True)
        try:
            self._reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()
        except FileNotFoundError as error:
            raise CheckpointError(f"{error.filename} does not exist; copy every .distcp file") from error
        except Exception as error:  # torch's readers raise RuntimeError, EOFError, pickle's and zip's own errors
            # What torch says here is advice to load the file unsafely.
            raise CheckpointError(
                f"{self.folder}: {name} cannot be read ({type(error).__name__}): its file is damaged, or holds "
                "something that is not a tensor; fetch the folder again"
            ) from error
        return tensor


def _read_metadata(folder: Path) -> Metadata:
    path = folder / METADATA
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {_remedy(folder)}")
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise CheckpointError(f"{path} is not the metadata of torch.distributed.checkpoint")
    return metadata


def _remedy(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder"
    below = sorted(path.parent for path in folder.glob(f"*/{METADATA}"))
    if below:
        return f"did you mean {below[0]}?"
    if any(folder.glob(f"__*{METADATA}")):
        return "each rank wrote metadata of its own (use_collectives=False), which is not supported: save once together"
    return "a DCP folder has it beside its .distcp files, and a save that was cut short has not"
