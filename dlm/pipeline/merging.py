"""`predictions.jsonl` out of a run's shards: each prompt once, in input order, whole or not at all.

Reads files only; runs outside the Trainer, by rank 0 after a run and by `python -m dlm.merge` for job arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dlm.errors import IncompleteRunError
from dlm.pipeline.run_folder import RunFolder, replace
from dlm.pipeline.shards import Answered, read_answers

NAMED = 5
"""How many missing ids a message names."""


@dataclass(frozen=True)
class Merged:
    """What was written."""

    path: Path
    prompts: int
    rows: int
    refused: int


def merge(folder: RunFolder, resume: str) -> Merged:
    """Write the run's predictions.

    Args:
        folder: the run.
        resume: the command that finishes it, for the message.

    Raises:
        IncompleteRunError: some prompts have no answer; nothing is written.
        RunError: no run there, or no room for the result.
    """
    index = folder.read_index()
    answered = read_answers(folder.shard_files(), index.samples)
    missing = answered.missing(index.ids)
    if missing:
        named = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        raise IncompleteRunError(
            f"{len(index.ids) - len(missing)} of {len(index.ids)} prompts are answered and kept, {len(missing)} are "
            f"missing ({named}). To finish:\n  {resume}"
        )
    replace(folder.predictions, _lines(index.ids, answered))
    rows = sum(len(answered.places[id]) for id in index.ids)
    return Merged(folder.predictions, len(index.ids), rows, len(answered.refused & set(index.ids)))


def _lines(ids: list[str], answered: Answered) -> Iterator[bytes]:
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for id in ids:
            for _, place in sorted(answered.places[id].items()):
                if place.path not in files:
                    files[place.path] = stack.enter_context(place.path.open("rb"))
                files[place.path].seek(place.offset)
                yield files[place.path].read(place.length)
