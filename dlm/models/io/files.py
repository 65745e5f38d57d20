"""Opening files of a checkpoint: regular files alone, of a bounded size, under names that lead nowhere else.

A checkpoint is a folder from somebody else: a name in it may be a pipe that blocks for ever, a device without end, or a
file far larger than what it should hold.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dlm._quoting import quoted, reason
from dlm.errors import CheckpointError

MIB = 1 << 20

JSON_BYTES = 64 * MIB
"""The largest JSON file that is read: tokenizers and indexes of large models have some 30 MiB at most."""


def check_regular(path: Path) -> int:
    """Size of a file. `CheckpointError` where it is a pipe, a socket, a device or a folder; `FileNotFoundError` where
    there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({reason(error)})") from None
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is not a regular file; a checkpoint holds no folder, pipe or device there")
    return found.st_size


def open_regular(path: Path) -> BinaryIO:
    """A file for reading; errors as `check_regular`. Opening never blocks, whatever takes its place meanwhile."""
    check_regular(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({reason(error)})") from None
    file = open(descriptor, "rb")  # noqa: SIM115  # the caller closes it
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise CheckpointError(f"{path} is not a regular file")
    return file


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file; errors as `open_regular`, and `CheckpointError` where it has more than `limit` bytes."""
    try:
        with open_regular(path) as file:
            large = os.fstat(file.fileno()).st_size > limit
            content = b"" if large else file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({reason(error)})") from None
    if large or len(content) > limit:
        raise CheckpointError(f"{path} has more than {limit // MIB} MiB, the most that is read of such a file")
    return content


def read_json(path: Path, limit: int = JSON_BYTES) -> dict[str, Any]:
    """One JSON object from a file; `CheckpointError` says what is wrong with it.

    A key that stands twice in one object with different values is an error: readers differ in which one they take.
    """
    try:
        value = json.loads(read_bytes(path, limit).decode("utf-8"), object_pairs_hook=_without_conflicts)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; a checkpoint folder holds config.json and safetensors") from None
    except RecursionError:
        raise CheckpointError(f"{path} cannot be read: it is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise CheckpointError(f"{path} cannot be read ({reason(error)})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _without_conflicts(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        for key, value in pairs:
            if value != made[key]:
                raise ValueError(f"the key {quoted(key)} stands there twice with different values")
    return made


def beside(folder: Path, name: object, said_by: Path) -> Path:
    """The file `name` of `folder`. `CheckpointError` where the text that `said_by` holds is not such a name."""
    plain = isinstance(name, str) and name.isprintable() and name not in ("", ".", "..") and Path(name).name == name
    if not plain or len(os.fsencode(str(name))) > 255:
        raise CheckpointError(f"{said_by} names {quoted(name)}, which is not a file beside it")
    return folder / str(name)


def check_folder(folder: Path, patterns: Sequence[str], limit: int) -> None:
    """Refuse a folder in which a file of one of these patterns is not regular, or larger than `limit` bytes: for
    libraries that open files themselves."""
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        try:
            size = check_regular(path)
        except FileNotFoundError:
            continue  # a link whose end is gone, which they do not see either
        if size > limit:
            raise CheckpointError(f"{path} has more than {limit // MIB} MiB, the most that is read of such a file")
