"""A file is read as JSON lines or as one JSON array; anything else is named, with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dlm.data.prompt_file import read_rows
from dlm.errors import DataError

ROWS = [{"prompt": "Sort 2 1."}, {"prompt": "Sort 4 3."}]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("prompts.jsonl", TEXT)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        member = tarfile.TarInfo("prompts.jsonl")
        member.size = len(TEXT)
        file.addfile(member, io.BytesIO(TEXT.encode()))
    return buffer.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(TEXT.encode()), "is gzip, not JSON lines: gunzip it"),
    "gzip without compression": (gzip.compress(TEXT.encode(), 0), "is gzip"),
    "zip": (zipped(), "is a zip archive"),
    "tar": (tarred(), "is a tar archive"),
    "bzip2": (bz2.compress(TEXT.encode()), "is bzip2"),
    "xz": (lzma.compress(TEXT.encode()), "is xz"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00" + b"\x00" * 40, "is zstd"),
    "lz4": (b"\x04\x22\x4d\x18\x60\x40" + b"\x00" * 40, "is lz4"),
    "pickle": (pickle.dumps(ROWS), "is a pickle"),
    "parquet": (b"PAR1\x15\x04\x15" + b"\x00" * 40 + b"PAR1", "is Parquet, not JSON lines: data=hf"),
    "arrow": (b"ARROW1\x00\x00\xff\xff\xff\xff", "is Arrow"),
    "an arrow stream": (b"\xff\xff\xff\xff\x10\x01\x00\x00", "is an Arrow stream"),
    "utf-16": (TEXT.encode("utf-16"), "is text in UTF-16, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8"),
    "utf-16-le": (TEXT.encode("utf-16-le"), "iconv -f UTF-16LE"),
    "utf-16-be": (TEXT.encode("utf-16-be"), "iconv -f UTF-16BE"),
    "utf-16 array": (json.dumps(ROWS).encode("utf-16-le"), "iconv -f UTF-16LE"),
    "utf-32": (TEXT.encode("utf-32"), "iconv -f UTF-32 "),
    "utf-32-le": (TEXT.encode("utf-32-le"), "iconv -f UTF-32LE"),
    "utf-32-be": (TEXT.encode("utf-32-be"), "iconv -f UTF-32BE"),
    "CR alone": (TEXT.replace("\n", "\r").encode(), r"end in CR alone: convert it with tr '\r' '\n'"),
    "a page": (b"<!DOCTYPE html><html></html>\n", "is HTML or XML"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_format_is_named(name: str, tmp_path: Path) -> None:
    data, said = FOREIGN[name]
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError) as raised:
        read_rows(path, "task.shots_path")
    assert str(raised.value).startswith(f"task.shots_path={path} is ")
    assert said in str(raised.value)


@pytest.mark.parametrize("first", [b"<html>", b"PAR1", b"BZh", b"ORC", b"\x80\x04", b"{\x00"])
def test_one_odd_row_does_not_make_a_file_a_foreign_one(first: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(first + b"\n" + TEXT.encode())
    rows = dict(read_rows(path))
    assert isinstance(rows["line-1"], str)
    assert [rows["line-2"], rows["line-3"]] == ROWS


@pytest.mark.parametrize("text", [json.dumps(ROWS), json.dumps(ROWS, indent=2), "\ufeff \r\n" + json.dumps(ROWS)])
def test_an_array_is_read_element_by_element(text: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(text.encode())
    assert read_rows(path) == [("row-1", ROWS[0]), ("row-2", ROWS[1])]
    assert read_rows(path, limit=1) == [("row-1", ROWS[0])]


def test_an_odd_element_of_an_array_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('[{"prompt": "x", "score": 1e999}, 3, null, {"prompt": "y"}]')
    rows = read_rows(path)
    assert [isinstance(row, dict) for _, row in rows] == [True, False, False, True]
    assert rows[1] == ("row-2", "a JSON int, not an object")


@pytest.mark.parametrize("text", ['[{"prompt": "x"},\n{"prompt": "y"\n', "[" * 100_000, "[1, 2\n"])
def test_an_array_that_is_broken_is_looked_at_by_lines(text: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text + '{"prompt": "z"}')
    rows = read_rows(path)
    assert all(isinstance(row, str) for _, row in rows[:-1])


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(TEXT + "broken")
    assert [name for name, _ in read_rows(path, limit=2)] == ["line-1", "line-2"]


def test_carriage_returns_inside_one_object_are_white_space(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt":\r"x"}\r')
    assert read_rows(path) == [("line-1", {"prompt": "x"})]


def test_a_file_that_cannot_be_read_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_rows(tmp_path)


@pytest.mark.parametrize("value", [1.5, -0.0, 10**300, 1e308, "é", "\x00", [], {}, None, True])
def test_values_that_json_has_come_through_as_they_are(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "x", "value": value}))
    assert read_rows(path) == [("line-1", {"prompt": "x", "value": value})]
