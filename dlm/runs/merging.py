"""`predictions.jsonl` out of a run's shards: each prompt once, in input order, whole or not at all.

Reads files only; runs outside the Trainer, by rank 0 after a run and by `python -m dlm.merge` for job arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dlm._quoting import quoted
from dlm.errors import DataError, IncompleteRunError
from dlm.runs.run_folder import RunFolder
from dlm.runs.shards import AnsweredKeys, read_answers, read_rows
from dlm.runs.whole_files import remove_drafts, replace

NAMED = 5
"""How many missing ids a message names."""
LONGEST_ID = 80
"""Characters of an id that a message has whole."""


@dataclass(frozen=True)
class Merged:
    """What was written."""

    path: Path
    prompts: int
    rows: int
    refused: int

    def require_answers(self) -> None:
        """Raise `DataError`, with the first reason, where no prompt at all has an answer."""
        if self.refused < self.prompts:
            return
        first = next((row for _, row in read_rows(self.path) if "error" in row), None)
        if first is not None:
            raise DataError(
                f"none of the {self.prompts} prompts has an answer. The first, {quoted(first['id'])}: "
                f"{first['error']['message']}. All are in {self.path}"
            )


def merge(folder: RunFolder, resume: str) -> Merged:
    """Write the run's predictions.

    Args:
        folder: the run.
        resume: the command that finishes it, for the message.

    Raises:
        IncompleteRunError: some prompts have no answer; nothing is written.
        RunError: no run there, or no room for the result.
    """
    remove_drafts(folder.path)
    index = folder.read_index()
    answered = read_answers(folder.shard_files(), index.samples)
    missing = answered.missing(index.ids)
    if missing:
        named = ", ".join(map(_named, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
        raise IncompleteRunError(
            f"{len(index.ids) - len(missing)} of {len(index.ids)} prompts are answered and kept, {len(missing)} are "
            f"missing ({named}). To finish:\n  {resume}"
        )
    replace(folder.predictions, _lines(index.ids, answered))
    rows = sum(len(answered.places[id]) for id in index.ids)
    return Merged(folder.predictions, len(index.ids), rows, len(answered.refused & set(index.ids)))


def _named(id: str) -> str:
    """An id as a message has it: as it is where it is short and plain."""
    return id if len(id) <= LONGEST_ID and id.isprintable() else quoted(id)


def _lines(ids: list[str], answered: AnsweredKeys) -> Iterator[bytes]:
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for id in ids:
            for _, place in sorted(answered.places[id].items()):
                if place.path not in files:
                    files[place.path] = stack.enter_context(place.path.open("rb"))
                files[place.path].seek(place.offset)
                yield files[place.path].read(place.length)
