"""Two starts in one run folder are told of each other, once."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dlm.distributed.heartbeat import WorkerStatus, read_status, status_file
from dlm.distributed.processes import machine, process_birth
from dlm.runs.other_starts import OtherStarts, at_work

LIVING = WorkerStatus("rank0", machine(), os.getpid(), process_birth(os.getpid()), state="running")
DEAD = replace(LIVING, birth="another")
ELSEWHERE = replace(LIVING, machine="elsewhere/x/y")


def attempt(claims: Path, name: str, *statuses: WorkerStatus) -> Path:
    folder = claims / name
    folder.mkdir(exist_ok=True)
    for number, status in enumerate(statuses):
        status_file(folder, f"rank{number}").write_text(json.dumps(asdict(status)))
    return folder


def test_each_of_two_starts_is_told_of_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempt(tmp_path, "past", DEAD)
    attempt(tmp_path, "first", LIVING)
    first = OtherStarts(tmp_path, "first")
    first.tell()
    assert capsys.readouterr().err == ""
    attempt(tmp_path, "second")
    first.tell()  # it has said nothing yet
    assert capsys.readouterr().err == ""
    attempt(tmp_path, "second", LIVING)
    for one, other in (("first", "second"), ("second", "first")):
        starts = first if one == "first" else OtherStarts(tmp_path, "second")
        starts.tell()
        said = capsys.readouterr().err
        assert f"another start works in this run folder: attempt {other}, process {os.getpid()}" in said
        assert len(said.splitlines()) == 1
        starts.tell()
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("status", "works"),
    [(LIVING, True), (DEAD, False), (replace(LIVING, state="done"), False), (ELSEWHERE, True)],
)
def test_a_process_works_as_long_as_it_lives_and_has_not_ended(
    status: WorkerStatus, works: bool, tmp_path: Path
) -> None:
    folder = attempt(tmp_path, "a", status)
    assert (at_work(status_file(folder, "rank0")) is not None) == works


def test_one_elsewhere_that_has_long_been_silent_is_gone(tmp_path: Path) -> None:
    path = status_file(attempt(tmp_path, "a", ELSEWHERE), "rank0")
    os.utime(path, (0, 0))
    assert at_work(path) is None


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 200_000, b"[]", b"3", b"{}", b'{"worker": "a"}', b"\xff"])
def test_a_damaged_status_says_nothing(text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = attempt(tmp_path, "other")
    status_file(folder, "rank0").write_bytes(text)
    assert read_status(folder, "rank0") is None
    OtherStarts(tmp_path, "mine").tell()
    assert capsys.readouterr().err == ""


def test_a_folder_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    OtherStarts(tmp_path / "nowhere", "mine").tell()
