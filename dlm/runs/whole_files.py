"""Files that appear with their content or not at all, whatever is killed and however many processes write them.

What a killed process was writing is left as a draft; `remove_drafts` takes those away that nobody writes any more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dlm.errors import RunError

DRAFT = re.compile(r"\..+\.\d+\.[0-9a-f]{8}")
"""Name of a draft: a dot, the file's name, the process, and what tells drafts apart."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
"""What file systems without hard links answer (exFAT, FUSE, SMB)."""


def publish(path: Path, text: str) -> bool:
    """Write a file whole and only if it is not there; True when this call made it.

    Raises:
        RunError: the place is full or cannot be written to.
    """
    if path.exists():
        return False
    try:
        with _draft(path) as (draft, file):
            file.write(text.encode())
            _flush(file)
            try:
                os.link(draft, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return _publish_without_links(draft, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; make room, or choose another run_dir") from error
    return True


def replace(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file whole in place of whatever was there, and have it on the disk before it gets its name.

    Raises:
        RunError: the place is full or cannot be written to; what was there stays.
    """
    try:
        with _draft(path) as (draft, file):
            file.writelines(lines)
            _flush(file)
            draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}; the shards are kept, make room and merge again"
        ) from error


def try_to_write(folder: Path) -> None:
    """Raise `OSError` where no file can be made in a folder."""
    with _draft(folder / "probe"):
        pass


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes have left half written in a folder; drafts that are being written stay."""
    for path in folder.glob(".*"):
        if DRAFT.fullmatch(path.name):
            try:
                with path.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            except OSError:  # somebody writes or has removed it, or the file system cannot tell
                continue


@contextmanager
def _draft(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path` under another name, which goes away at the end unless it was given that of `path`.

    It is locked as long as it is written: the lock ends with the process, on whichever machine that runs.
    """
    while True:
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with draft.open("xb") as file:
            try:
                _lock(file)
                if not draft.exists():  # taken for one that a killed process left, before it was locked
                    continue
                yield draft, file
                return
            finally:
                draft.unlink(missing_ok=True)


def _lock(file: BinaryIO) -> bool:
    """Wait for the lock of a file; False where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _publish_without_links(draft: Path, path: Path) -> bool:
    """Give a draft its name unless it is taken, with a lock that all who publish it wait for.

    Raises:
        OSError: the file system has no locks either.
    """
    with path.with_name(f".{path.name}.lock").open("ab") as file:
        if not _lock(file):
            raise OSError(errno.ENOTSUP, "the file system has neither hard links nor locks")
        if path.exists():
            return False
        draft.rename(path)
        return True
