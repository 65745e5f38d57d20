"""Write a model's tensors to a new folder: safetensors with an index, or torch.distributed.checkpoint (DCP).

Both read from `ModelTensors` while they write: one tensor is in memory at a time. A folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from dlm._quoting import named
from dlm.errors import CheckpointError
from dlm.models.io.files import read_json
from dlm.models.io.hub import CONFIG_FILES
from dlm.models.io.sources import INDEX, SAFETENSORS_DTYPES, SINGLE
from dlm.models.io.weights import ModelTensors

Say = Callable[[str], None]
"""Takes a line about what has been written."""


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that becomes `output` when the block ends well, and is removed when it does not.

    Raises `CheckpointError` where `output` is a file or holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"output={output} exists and is not an empty folder; name a new one")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.parent / f".{output.name}.partial-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        yield partial
        os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_config(base: Path, folder: Path, dtype: torch.dtype | None) -> None:
    """Configuration and tokenizer of `base`; config.json names `dtype` where weights were cast to it."""
    files = {path for pattern in CONFIG_FILES for path in base.glob(pattern)}
    for path in files:
        if path.name not in (INDEX, "adapter_config.json"):
            shutil.copyfile(path, folder / path.name)
    if dtype is not None:
        config = read_json(base / "config.json")
        config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def shards(tensors: ModelTensors, limit: int) -> list[list[str]]:
    """Names in groups of at most `limit` bytes, in the order in which they are read; a larger tensor is alone."""
    groups: list[list[str]] = []
    room = 0
    for name in tensors.names():
        size = tensors.num_bytes(name)
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def write_safetensors(tensors: ModelTensors, folder: Path, limit: int, say: Say) -> None:
    """Safetensors files of about `limit` bytes, with an index where there is more than one."""
    groups = shards(tensors, limit)
    files = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    files = files if len(groups) > 1 else [SINGLE]
    for file, names in zip(files, groups, strict=True):
        _write_safetensors_file(tensors, names, folder / file)
        say(f"{file}: {len(names)} tensors")
    if len(groups) > 1:
        weight_map = {name: file for file, names in zip(files, groups, strict=True) for name in names}
        total = sum(map(tensors.num_bytes, weight_map))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_safetensors_file(tensors: ModelTensors, names: Sequence[str], path: Path) -> None:
    """One file in the safetensors format: length of the header, header, data.

    The library's own writer wants all tensors of a file at once. Wider dtypes come first, so that each is aligned.
    """
    dtypes = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    ordered = sorted(names, key=lambda name: -tensors.dtype(name).itemsize)
    for name in ordered:
        end = offset + tensors.num_bytes(name)
        shape, dtype = list(tensors.shape(name)), tensors.dtype(name)
        if dtype not in dtypes:
            raise CheckpointError(f"{tensors.label}: {named(name)} has dtype {dtype}, which safetensors do not have")
        header[name] = {"dtype": dtypes[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in ordered:
            file.write(tensors.read(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _Planner(DefaultSavePlanner):
    """Plans with shapes alone; reads a tensor when its turn to be written has come."""

    def __init__(self, tensors: ModelTensors, names: Sequence[str]) -> None:
        super().__init__()
        self.tensors = tensors
        shapes = {name: torch.empty(tensors.shape(name), dtype=tensors.dtype(name), device="meta") for name in names}
        self.set_up_planner(shapes, is_coordinator=True)

    def resolve_data(self, write_item: Any) -> Tensor:
        return self.tensors.read(write_item.index.fqn)


class _Writer(FileSystemWriter):
    """Torch's writer, which does not record the temporary folder that it writes to."""

    def storage_meta(self) -> None:
        return None


def write_dcp(tensors: ModelTensors, folder: Path, limit: int, say: Say) -> None:
    """A DCP folder whose files of about `limit` bytes are each written as the share of one rank."""
    planners = [_Planner(tensors, names) for names in shards(tensors, limit)]
    plans = [planner.create_local_plan() for planner in planners]
    writer = _Writer(folder)
    writer.set_up_storage_writer(True)
    plans, metadata = planners[0].create_global_plan([writer.prepare_local_plan(plan) for plan in plans])
    results = []
    for number, (planner, plan) in enumerate(zip(planners, writer.prepare_global_plan(plans), strict=True)):
        results.append(writer.write_data(planner.finish_plan(plan), planner).wait())
        say(f"__{number}_0.distcp: {len(plan.items)} tensors")
    writer.finish(metadata, results)


WRITERS: dict[str, Callable[[ModelTensors, Path, int, Say], None]] = {"hf": write_safetensors, "dcp": write_dcp}
"""Format -> what writes it."""
