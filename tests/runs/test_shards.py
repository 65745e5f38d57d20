"""Rows are on the disk whole or not at all, and no torn one is read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dlm.errors import RunError
from dlm.runs.shards import ShardFile, read_answers, read_rows, to_line
from tests.pipeline.rows import refused, row


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path / "a.jsonl")
    rows = [row("a", text="zwölf\nÄpfel"), row("b", text=""), refused("c")]
    for one in rows:
        shard.append(one)
    assert [one for _, one in read_rows(shard.path)] == rows
    shard.close()


def test_each_row_is_one_write_and_readable_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, calls, write = ShardFile(tmp_path / "a.jsonl"), [], os.write

    def counted(file: int, data: bytes) -> int:
        calls.append(data)
        return write(file, data)

    monkeypatch.setattr(os, "write", counted)
    for number in range(3):
        shard.append(row(str(number)))
        assert len(calls) == number + 1
        assert len(list(read_rows(shard.path))) == number + 1
    shard.close()


@pytest.mark.parametrize("cut", range(1, len(to_line(row("b", nfe=12)))))
def test_a_line_cut_anywhere_is_no_row(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(to_line(row("a")) + to_line(row("b", nfe=12))[:-cut])
    assert [one["id"] for _, one in read_rows(path)] == ["a"]


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\x00\x00\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"no": "id"}\n',
        b'{"id": 3}\n',
        b"\n",
        b"[" * 200_000 + b"\n",
        b'{"id": "c", "prompt": "?", "text": ' + b"[" * 200_000 + b"\n",
        *(to_line(row("c", sample=sample)) for sample in ([1], "0", True, None, 1.0, {})),
        *(to_line(row("c", **{name: None})) for name in ("text", "token_ids", "nfe", "row", "step_map", "lengths")),
        to_line(row("c", lengths=["1"])),
        *(to_line({**refused("c"), "error": error}) for error in (None, {}, "why", {"type": 1, "message": "m"})),
        b'{"id": "c"}\n',
    ],
)
def test_what_is_no_row_is_passed_over(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(to_line(row("a")) + damage + to_line(row("b")))
    assert [one["id"] for _, one in read_rows(path)] == ["a", "b"]


def test_text_that_utf8_cannot_hold_is_escaped() -> None:
    assert json.loads(to_line({"id": "a", "row": "\ud800"})) == {"id": "a", "row": "\ud800"}


def test_a_full_disk_says_what_is_kept_and_leaves_no_torn_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, write = ShardFile(tmp_path / "a.jsonl"), os.write
    shard.append(row("a"))
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    with pytest.raises(RunError, match=r"a\.jsonl: the disk is full; the 1 answers before stay there"):
        shard.append(row("b", text="x" * 100))

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match="No space left on device"):
        shard.append(row("c"))
    monkeypatch.undo()
    assert [one["id"] for _, one in read_rows(shard.path)] == ["a"]
    shard.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the kernel offers no device that is always full")
def test_the_kernels_full_device_is_a_run_error() -> None:
    shard = ShardFile(Path("/dev/full"))
    with pytest.raises(RunError, match="No space left on device"):
        shard.append({"id": "a"})
    shard.close()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(to_line(row) for row in rows))
    return path


def test_the_first_row_of_an_id_counts(tmp_path: Path) -> None:
    first = write(tmp_path / "1.jsonl", [row("a"), row("b")])
    second = write(tmp_path / "2.jsonl", [row("b"), row("c")])
    answered = read_answers([first, second], samples=1)
    assert answered.places["b"][0].path == first
    assert answered.missing(["a", "b", "c", "d"]) == ["d"]


def test_an_id_is_done_when_all_its_samples_are_or_it_is_refused(tmp_path: Path) -> None:
    rows = [row("a", sample=0), row("a", sample=1), row("b", sample=1), refused("c")]
    answered = read_answers([write(tmp_path / "1.jsonl", rows)], samples=2)
    assert answered.missing(["a", "b", "c"]) == ["b"]


@pytest.mark.parametrize("sample", [2, -1, 10**30])
def test_a_row_with_a_sample_that_nobody_asked_for_neither_ends_a_prompt_nor_keeps_it_open(
    tmp_path: Path, sample: int
) -> None:
    rows = [
        row("a", sample=0),
        row("a", sample=1),
        row("a", sample=sample),
        row("b", sample=0),
        row("b", sample=sample),
    ]
    answered = read_answers([write(tmp_path / "1.jsonl", rows)], samples=2)
    assert answered.missing(["a", "b"]) == ["b"]
    assert set(answered.places["a"]) == {0, 1}


def test_a_shard_that_cannot_be_read_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot read"):
        list(read_rows(tmp_path))
