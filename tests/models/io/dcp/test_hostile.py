"""DCP folders from an attacker: nothing that a pickle says may reach a class, a file or another program."""

from __future__ import annotations

import builtins
import collections
import io
import pathlib
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as torch_metadata
from torch.distributed.checkpoint.metadata import Metadata

from dlm.errors import CheckpointError
from dlm.models.io.dcp.folder import DcpSource
from dlm.models.io.dcp.metadata import METADATA, NAMES, tiled
from dlm.models.io.dcp.pickled import MAX_MARKS, MAX_STACK, PickleError, PickleReader
from dlm.models.io.dcp.saved_tensor import Span, read_saved_tensor
from dlm.models.io.loading import load_checkpoint
from tests.fuzzing.pickles import attack, named, text
from tests.models.checkpoints import copy_golden, golden_tensors, save_dcp

COMMAND = "c$(touch harm)\nx\x1b[31m"
WATCHED = (pathlib.PosixPath, pathlib.Path, torch.Size, collections.OrderedDict, builtins, torch_metadata.Metadata,
           torch_metadata.TensorProperties, torch.serialization._get_layout)  # fmt: skip


def state() -> list[dict[str, int]]:
    """What an attack on live classes would change."""
    return [{name: id(value) for name, value in vars(each).items()} for each in WATCHED]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_golden(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_dcp({**golden_tensors(), "epoch": 3}, tmp_path / "step_1")


def edit(folder: Path, change: Callable[[Metadata], None], protocol: int | None = None) -> None:
    metadata = pickle.loads((folder / METADATA).read_bytes())
    change(metadata)
    (folder / METADATA).write_bytes(pickle.dumps(metadata, protocol=protocol))


@pytest.mark.parametrize("name", ["pathlib.PosixPath", "torch.serialization._get_layout", "torch.Size"])
@pytest.mark.parametrize("slot", ["_str", "__truediv__", "exists", "replace", "cache"])
def test_a_pickle_cannot_set_attributes_of_a_class(folder: Path, name: str, slot: str) -> None:
    """BUILD with slots is `setattr` for whatever a name stands for."""
    before = state()
    setting = named(name) + b"N}" + text(slot) + text(str(folder / "victim")) + b"s\x86b0"
    module, last = COMMAND, "x"
    (folder / METADATA).write_bytes(b"\x80\x03" + setting + text(module) + text(last) + b"\x93.")
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be used: .* stands where it cannot"):
        DcpSource(folder)
    assert state() == before
    assert not (folder / "victim").exists()


def test_what_a_pickle_says_is_quoted_and_cut(folder: Path) -> None:
    (folder / METADATA).write_bytes(b"\x80\x04" + text(COMMAND + "y" * 5000) + text("x") + b"\x93.")
    with pytest.raises(CheckpointError) as raised:
        DcpSource(folder)
    said = str(raised.value)
    assert r"it asks for 'c$(touch harm)\nx\x1b[31m" in said
    assert said.isprintable()
    assert len(said) < 400


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04}" + b")\x85\x94" + b"h\x00h\x00\x86\x94" * 1 + b"h\x01h\x01\x86" * 40 + b"Ns.",
        b"\x80\x04}(" + b")" + b"\x94h\x00\x86" * 40 + b"Nu.",
        b"\x80\x04" + b"(" * (MAX_MARKS + 1) + b"t.",
        b"\x80\x04" + b"N" * (MAX_STACK + 2) + b".",
        b"\x80\x04X\xff\xff\xff\x7f",
        b"\x80\x04\x8a\xff\x01",
        b"\x80\x04h\x05.",
        b"\x80\x04" + b"]" * 5 + b".",
        b"\x80\x04(i\n.",
        b"\x80\x06N.",
        b"\x80\x04N.N",
        b"cos\nsystem\n(S'echo'\ntR.",
        b"\x80\x04\x82\x01.",
    ],
)
def test_a_pickle_of_other_parts_is_refused_at_once(folder: Path, content: bytes) -> None:
    (folder / METADATA).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be used: "):
        DcpSource(folder)


def test_a_file_that_is_larger_than_any_metadata_is_not_read(folder: Path) -> None:
    with (folder / METADATA).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="has more than 128 MiB"):
        DcpSource(folder)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 6))
def test_any_names_with_any_opcodes_make_data_or_an_error(seed: int, count: int) -> None:
    before, rng = state(), random.Random(seed)
    content = b"\x80\x04" + b"".join(attack(rng) for _ in range(count)) + b"."
    said = ""
    try:
        PickleReader(content, NAMES).read()
    except PickleError as error:
        said = str(error)
    assert said == "" or said.isprintable()
    assert len(said) < 400
    assert state() == before


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_torch_may_write_is_read(base: Path, folder: Path, protocol: int) -> None:
    edit(folder, lambda metadata: None, protocol)
    found = load_checkpoint(base, weights=DcpSource(folder)).backbone
    expected = load_checkpoint(base).backbone
    assert all(torch.equal(value, found.get_parameter(name)) for name, value in expected.named_parameters())


def test_members_of_enumerations_as_older_pythons_write_them_are_read(folder: Path) -> None:
    content = (folder / METADATA).read_bytes()
    assert b"_MEM_FORMAT_ENCODING" in content
    reader = PickleReader(
        b"\x80\x04" + named("builtins.getattr") + named("torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING")
        + text("TORCH_CONTIGUOUS_FORMAT") + b"\x86R.", NAMES
    )  # fmt: skip
    assert str(reader.read().name) == "builtins.getattr"


WEIGHT = "model.transformer.wte.weight"


def index_of(metadata: Metadata, name: str = WEIGHT) -> Any:
    return next(index for index in metadata.storage_data if index.fqn == name)


def chunk(offsets: list[int], sizes: list[int]) -> Any:
    return torch_metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def set_chunks(*chunks: Any) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        old = metadata.storage_data.pop(index_of(metadata))
        for each in chunks:
            metadata.storage_data[torch_metadata.MetadataIndex(WEIGHT, each.offsets)] = old
        metadata.state_dict_metadata[WEIGHT].chunks = list(chunks)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_chunks(chunk([0, 0], [256, 64]), chunk([0, 0], [256, 64])), "parts, of which 1|overlap or lie outside"),
        (set_chunks(chunk([0, 0], [384, 64]), chunk([128, 0], [128, 64])), "parts that overlap or lie outside"),
        (set_chunks(chunk([0, 0], [256, 64]), chunk([300, 0], [256, 64])), "parts that overlap or lie outside"),
        (set_chunks(chunk([0, 0], [256, 64])), "stored in part only"),
        (set_chunks(chunk([0], [512])), "has not the 2 dimensions"),
        (set_chunks(chunk([0, 0], [512, 64]), chunk([5, 5], [0, 0])), None),
        (lambda metadata: metadata.state_dict_metadata[WEIGHT].chunks.clear(), "stored in part only"),
        (lambda metadata: metadata.storage_data.pop(index_of(metadata)), "of which nothing says where it lies"),
        (lambda metadata: metadata.storage_data.update(
            {torch_metadata.MetadataIndex(WEIGHT, torch.Size([9, 9])): metadata.storage_data[index_of(metadata)]}),
         "has a place for a part that it does not have"),
        (lambda metadata: metadata.storage_data.update(
            {torch_metadata.MetadataIndex("nobody", torch.Size([0])): metadata.storage_data[index_of(metadata)]}),
         "storage_data has 'nobody', which state_dict_metadata has not"),
        (lambda metadata: setattr(metadata.storage_data[index_of(metadata)], "offset", -1), "whole numbers from 0"),
        (lambda metadata: setattr(metadata.storage_data[index_of(metadata)], "length", 10**30), "whole numbers from 0"),
        (lambda metadata: setattr(metadata.state_dict_metadata[WEIGHT], "size", (2.0, True)), "whole numbers from 0"),
        (lambda metadata: setattr(metadata.state_dict_metadata[WEIGHT], "chunks", None), "chunks is None"),
        (lambda metadata: setattr(metadata.state_dict_metadata[WEIGHT].properties, "dtype", "x"), "has the dtype 'x'"),
        (lambda metadata: setattr(metadata.state_dict_metadata[WEIGHT].properties, "dtype", torch.int8), "as int8"),
        (lambda metadata: setattr(metadata.state_dict_metadata[WEIGHT].properties, "dtype", torch.float64), "float64"),
        (lambda metadata: setattr(metadata.storage_data[index_of(metadata)], "relative_path", "a\0b"),
         r"names 'a\\x00b', which is not a file beside it"),
        (lambda metadata: setattr(metadata.storage_data[index_of(metadata)], "transform_descriptors", ["zstd"]),
         "stored with the transforms .'zstd'.*not supported"),
    ],
)  # fmt: skip
def test_parts_that_do_not_make_up_the_tensor_are_refused(
    base: Path, folder: Path, change: Callable[[Metadata], None], message: str | None
) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(base, weights=DcpSource(folder))


boxes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=5)


@given(rows=st.integers(0, 3), columns=st.integers(0, 3), drawn=boxes)
def test_boxes_tile_a_tensor_where_every_number_is_covered_once(
    rows: int, columns: int, drawn: list[tuple[int, int, int, int]]
) -> None:
    counts = torch.zeros(8, 8, dtype=torch.int64)
    for top, left, height, width in drawn:
        counts[top : top + height, left : left + width] += 1
    expected = torch.zeros(8, 8, dtype=torch.int64)
    expected[:rows, :columns] = 1
    found = tiled((rows, columns), [((top, left), (height, width)) for top, left, height, width in drawn])
    assert found == torch.equal(counts, expected)


# Shards


def saved(tensor: Any, **options: Any) -> bytes:
    made = io.BytesIO()
    torch.save(tensor, made, **options)
    return made.getvalue()


def read(content: bytes) -> torch.Tensor:
    return read_saved_tensor(Span(io.BytesIO(b"before" + content + b"behind"), 6, len(content)))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4),
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(24.0)[::2],
        torch.tensor(3.5, dtype=torch.bfloat16),
        torch.zeros(0, 4),
        torch.ones(3, dtype=torch.float8_e4m3fn),
        torch.tensor([True, False]),
        torch.arange(6, dtype=torch.int64).expand(4, 6),
    ],
)
def test_tensors_are_read_as_torch_reads_them(tensor: torch.Tensor) -> None:
    found, expected = read(saved(tensor)), torch.load(io.BytesIO(saved(tensor)))
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found.float(), expected.float())


def repacked(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    source, made = zipfile.ZipFile(io.BytesIO(saved(torch.ones(64)))), io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name in source.namelist():
            archive.writestr(name, change(name, source.read(name)))
    return made.getvalue()


def with_pickle(content: bytes) -> bytes:
    return repacked(lambda name, body: content if name.endswith("data.pkl") else body)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (repacked(lambda name, body: body, zipfile.ZIP_DEFLATED), "is compressed, or larger than the file"),
        (repacked(lambda name, body: body[:-1] if "data/" in name else body), "a storage of 255 bytes for 64 numbers"),
        (repacked(lambda name, body: b"big" if "byteorder" in name else body), "not in little-endian order"),
        (saved([torch.ones(2)]), "is not a tensor"),
        (saved({"a": 1}), "is not a tensor"),
        (saved(torch.ones(2), _use_new_zipfile_serialization=False), "no archive of torch.save"),
        (with_pickle(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."), "it asks for os.system"),
        (with_pickle(b"\x80\x02})" + b"q\x00h\x00\x86" * 40 + b"Ns."), "is not a tensor"),
        (with_pickle(pickle.dumps(1.0, protocol=2) + b"x"), "left over"),
    ],
)  # fmt: skip
def test_an_archive_that_holds_anything_else_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(PickleError, match=message):
        read(content)


def test_a_view_beyond_the_storage_is_refused() -> None:
    content = saved(torch.ones(64)).replace(b"K@\x85", b"K\xff\x85")
    with pytest.raises((PickleError, zipfile.BadZipFile)):
        read(content)


def test_the_file_of_a_shard_may_not_be_a_pipe(base: Path, folder: Path) -> None:
    import os

    (folder / "__0_0.distcp").unlink()
    os.mkfifo(folder / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"__0_0.distcp is not a regular file"):
        load_checkpoint(base, weights=DcpSource(folder))
