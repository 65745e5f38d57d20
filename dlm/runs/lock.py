"""Keeps a second start out of a folder in which one process writes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlm.errors import RunError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock ends with the process, however that ends.

    Raises:
        RunError: another process holds it.
    """
    with (folder / NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process is at work in {folder}; wait for it, or choose another run_dir") from None
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder."""
    path = folder / NAME
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
