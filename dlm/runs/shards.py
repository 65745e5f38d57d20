"""Answers on the disk: one JSON object a line, each line written whole by one system call as soon as it is known.

A process may be killed between any two instructions: a line that lacks its newline is no row, and no reader takes it
for one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.errors import RunError

ANSWER: dict[str, type] = {"text": str, "token_ids": list, "nfe": int}
"""What a row with an answer has, besides `id` and `prompt`."""
OPTIONAL: dict[str, type] = {
    "sample": int, "row": dict, "scores": list, "lengths": list, "canvas_ids": list, "step_map": list, "logprobs": list,
}  # fmt: skip
"""What any row may have."""


class ShardFile:
    """The file to which one process appends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self.rows = 0

    def append(self, row: dict[str, Any]) -> None:
        """Write one row.

        Raises:
            RunError: the disk is full or the file cannot be written; the rows before it stay.
        """
        line = to_line(row)
        try:
            if self._file is None:
                self._file = self._open()
            written = os.write(self._file, line)
            if written != len(line):
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                written = os.write(self._file, line)
        except OSError as error:
            raise RunError(self._kept(error.strerror)) from error
        if written != len(line):
            raise RunError(self._kept("the disk is full"))
        self.rows += 1

    def _open(self) -> int:
        """The file to append to; a line that was torn when this process was killed and started again is ended first,
        so that it does not take the next one with it."""
        torn = False
        if self.path.is_file() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read() != b"\n"
        opened = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if torn:
            os.write(opened, b"\n")
        return opened

    def _kept(self, reason: str | None) -> str:
        return f"cannot write {self.path}: {reason}; the {self.rows} answers before stay there. Make room, then resume"

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def to_line(row: dict[str, Any]) -> bytes:
    """A row as a line of UTF-8; text that UTF-8 cannot hold (a lone surrogate) is escaped."""
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class RowPlace:
    """Where a row lies."""

    path: Path
    offset: int
    length: int


def read_rows(path: Path) -> Iterator[tuple[RowPlace, dict[str, Any]]]:
    """The whole rows of a shard; what is torn or is no row is passed over, so that its prompt is decoded again.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for line in file:
                place, offset = RowPlace(path, offset, len(line)), offset + len(line)
                row = _row(line)
                if row is not None:
                    yield place, row
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def _row(line: bytes) -> dict[str, Any] | None:
    """The row that a line is, with all that its readers need; None where it is none."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or "prompt" not in row:
        return None
    error = row.get("error")
    if "error" in row:
        whole = isinstance(error, dict) and all(isinstance(error.get(key), str) for key in ("type", "message"))
    else:
        whole = all(_is(row.get(key), kind) for key, kind in ANSWER.items())
    if not whole or not all(_is(row[key], kind) for key, kind in OPTIONAL.items() if key in row):
        return None
    return row if all(_is(length, int) for length in row.get("lengths", ())) else None


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class AnsweredKeys:
    """What the shards of a run hold.

    Attributes:
        places: for each id the place of each sample's row, by sample number; the first written counts.
        refused: ids whose row says why there is no answer.
        samples: answers wanted for each id.
    """

    places: dict[str, dict[int, RowPlace]]
    refused: set[str]
    samples: int

    def done(self, id: str) -> bool:
        return id in self.refused or len(self.places.get(id, ())) == self.samples

    def missing(self, ids: Iterable[str]) -> list[str]:
        return [id for id in ids if not self.done(id)]


def read_answers(files: Iterable[Path], samples: int) -> AnsweredKeys:
    """Everything that is answered in `files`, which come in the order in which they count."""
    places: dict[str, dict[int, RowPlace]] = {}
    refused: set[str] = set()
    for path in files:
        for place, row in read_rows(path):
            sample = row.get("sample", 0)
            if not 0 <= sample < samples:
                continue
            places.setdefault(row["id"], {}).setdefault(sample, place)
            if "error" in row:
                refused.add(row["id"])
    return AnsweredKeys(places, refused, samples)
