"""Files are there whole or not at all: whoever races, whoever is killed, whatever the file system lacks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlm.errors import RunError
from dlm.runs.whole_files import publish, remove_drafts, replace
from tests import running


def test_the_first_to_publish_wins(tmp_path: Path) -> None:
    path, wins = tmp_path / "x", []
    running.race(lambda n: wins.append(n) if publish(path, str(n) * 10_000) else None)
    assert len(wins) == 1
    assert path.read_text() == str(wins[0]) * 10_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_replace_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "x"
    replace(path, [b"old"])

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left on device; the shards are kept"):
        replace(path, broken())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def without_links(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that answers a hard link with an error."""

    def link(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_without_hard_links_the_first_to_publish_wins_too(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(code, monkeypatch)
    path, wins, seen = tmp_path / "x", [], []

    def run(n: int) -> None:
        if publish(path, str(n) * 10_000):
            wins.append(n)
        seen.append(path.read_text())

    running.race(run)
    assert len(wins) == 1
    assert set(seen) == {str(wins[0]) * 10_000}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".x.lock", "x"]


def test_a_full_disk_is_not_taken_for_one_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(errno.ENOSPC, monkeypatch)
    with pytest.raises(RunError, match="No space left on device; make room, or choose another run_dir"):
        publish(tmp_path / "x", "text")
    assert not list(tmp_path.iterdir())


def test_a_file_system_with_neither_links_nor_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(errno.EPERM, monkeypatch)

    def flock(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunError, match="neither hard links nor locks; make room, or choose another run_dir"):
        publish(tmp_path / "x", "text")
    replace(tmp_path / "y", [b"text"])
    assert (tmp_path / "y").read_bytes() == b"text"


WRITER = """
import sys
from pathlib import Path
from dlm.runs.whole_files import replace

def lines():
    yield b"x" * 1_000_000
    print("writing", flush=True)
    sys.stdin.readline()
    yield b"y"

replace(Path(sys.argv[1]), lines())
"""


def test_a_draft_stays_while_it_is_written_and_goes_when_its_writer_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"

    def begun() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    with begun() as killed, begun() as living:
        drafts = len(list(tmp_path.iterdir()))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert drafts == 2
        remove_drafts(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
        living.communicate(b"\n")
    assert living.returncode == 0
    assert path.stat().st_size == 1_000_001
    assert list(tmp_path.iterdir()) == [path]


def test_only_drafts_are_removed(tmp_path: Path) -> None:
    mine = [".lock", ".env", ".x.1.zzzzzzzz", ".rank0.draft", "x.1.0a1b2c3d", ".hidden.2026.12345"]
    for name in (*mine, ".x.1.0a1b2c3d", ".predictions.jsonl.77.ffffffff"):
        (tmp_path / name).touch()
    (tmp_path / ".dir.1.0a1b2c3d").mkdir()
    remove_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, ".dir.1.0a1b2c3d"])


def test_a_draft_that_is_cleared_before_it_is_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, left = fcntl.flock, [1, 2]

    def late(file: Any, operation: int) -> None:
        if left and operation == fcntl.LOCK_EX:
            left.pop()
            for path in tmp_path.iterdir():
                path.unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert publish(tmp_path / "x", "text")
    assert not left
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]
