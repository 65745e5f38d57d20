"""Raw rows of a data file: one JSON object per line, or one JSON array of objects.

A fault inside a row affects only that row. For a file without any valid row, the error names its actual format or
encoding if it can be recognized.
"""

from __future__ import annotations

import codecs
import json
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dlm._quoting import quoted
from dlm.errors import DataError

Parsed = dict[str, Any] | str
"""A row, or why it is not one."""

DEEPEST = 64
"""Maximum nesting of lists and objects inside a field; far below the limits of the JSON reader and writer."""

SHOWN = 40
"""Maximum characters of a number shown in a message."""

LINES, FOLDER = "write it as JSON lines", "data=hf with data.path=<its folder> reads it"
FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b\x08", "gzip", "gunzip it"),
    (b"PK\x03\x04", "a zip archive", "unzip it"),
    (b"PK\x05\x06", "an empty zip archive", "name a file of prompts"),
    (b"\x28\xb5\x2f\xfd", "zstd", "decompress it with zstd -d"),
    (b"\xfd7zXZ\x00", "xz", "decompress it with xz -d"),
    (b"BZh", "bzip2", "bunzip2 it"),
    (b"\x04\x22\x4d\x18", "lz4", "decompress it with lz4 -d"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "extract it with 7z x"),
    (b"PAR1", "Parquet", FOLDER),
    (b"ARROW1", "Arrow", FOLDER),
    (b"\xff\xff\xff\xff", "an Arrow stream", FOLDER),
    (b"Obj\x01", "Avro", LINES),
    (b"ORC", "ORC", LINES),
    (b"SQLite format 3\x00", "an SQLite database", LINES),
    (b"\x89HDF", "HDF5", LINES),
    (b"\x93NUMPY", "a NumPy array", LINES),
    (b"\x80", "a pickle", LINES),
    (b"%PDF", "PDF", LINES),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file", "fetch it with git lfs pull"),
    (b"<", "HTML or XML", "a page may have been saved in place of the file; fetch it again"),
)
"""First bytes, the format they indicate, and what to do."""

CERTAIN = tuple(one for one in FORMATS if len(one[0]) > 1 and not one[0].decode("latin-1").isprintable())
"""Formats whose first bytes can never start a row. Archives may contain rows uncompressed."""

TAR, TAR_AT = b"ustar", 257

ENCODINGS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    *((first.encode(name), name) for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE") for first in "{["),
)
"""First bytes of JSON in an encoding other than UTF-8."""


@dataclass(frozen=True)
class _NotJson:
    """The text of a number that JSON cannot represent: NaN, 1e999, or more digits than Python reads."""

    text: str


def read_rows(path: Path, key: str = "data.path", limit: int | None = None) -> list[tuple[str, Parsed]]:
    """Each row with a name from its position: `line-7`, or `row-7` in an array. Blank lines are skipped.

    Args:
        path: the file.
        key: the file's name in messages.
        limit: maximum number of rows; None: all.

    Raises:
        DataError: it cannot be read, or has no rows because it has another format or encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{key}={path} cannot be read: {error.strerror}") from error
    _refuse(f"{key}={path}", _archive(data))
    array = _array(data)
    if array is not None:
        return [(f"row-{number}", _object(value)) for number, value in enumerate(array[:limit], 1)]
    lines = ((number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())
    rows = [(f"line-{number}", _parse(line)) for number, line in islice(lines, limit)]
    if not any(isinstance(row, dict) for _, row in rows):
        _refuse(f"{key}={path}", _foreign(data))
    return rows


def unusable(row: dict[str, Any]) -> str | None:
    """Why a row could not be written back as JSON in UTF-8; None if it could."""
    for name, value in row.items():
        reason = _odd([name, value])
        if reason is not None:
            return f"field {quoted(name)}: {reason}"
    return None


def _odd(level: list[Any]) -> str | None:
    """The first fault in these values or any value nested inside them; None if there is none."""
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                if not _is_text(value):
                    return "it holds half of a surrogate pair, which is not a character"
            elif isinstance(value, _NotJson):
                return f"{value.text[:SHOWN]} is not a JSON number"
            elif isinstance(value, float):
                if not math.isfinite(value):
                    return f"{value} is not a JSON number"
            elif isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
        if not below:
            return None
        level = below
    return f"it is nested more than {DEEPEST} levels deep"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(name: str, what: str | None) -> None:
    if what is not None:
        raise DataError(f"{name} is {what}")


def _archive(data: bytes) -> str | None:
    """The format of a compressed or binary file, and what to do with it; None if it may be text."""
    if data.startswith(TAR, TAR_AT) and b"\x00" in data[:TAR_AT]:
        return "a tar archive, not JSON lines: extract it with tar -xf"
    return _format(data, CERTAIN)


def _format(data: bytes, formats: tuple[tuple[bytes, str, str], ...]) -> str | None:
    for first, what, remedy in formats:
        if data.startswith(first):
            return f"{what}, not JSON lines: {remedy}"
    return None


def _foreign(data: bytes) -> str | None:
    """The actual format of a file without rows, and what to do with it; None if not recognized."""
    found = _format(data, FORMATS)
    if found is not None:
        return found
    for first, name in ENCODINGS:
        if data.startswith(first):
            return f"text in {name}, not UTF-8: convert it with iconv -f {name} -t UTF-8"
    inside = data.strip()
    if b"\r" in inside and b"\n" not in inside:
        return "a file whose lines end in CR alone: convert it with tr '\\r' '\\n'"
    return None


def _array(data: bytes) -> list[Any] | None:
    """The elements if the whole file is one JSON array; None if it has to be read line by line."""
    if not data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return None
    try:
        value = _loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _parse(line: bytes) -> Parsed:
    try:
        return _object(_loads(line))
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        return f"broken JSON: {error.msg} at column {error.colno}"
    except (RecursionError, ValueError) as error:
        return f"broken JSON: {error}"


def _object(value: Any) -> Parsed:
    return value if isinstance(value, dict) else f"a JSON {type(value).__name__}, not an object"


def _loads(data: bytes) -> Any:
    text = data.decode("utf-8").removeprefix("\ufeff")
    return json.loads(text, parse_constant=_NotJson, parse_float=_real, parse_int=_whole)


def _real(text: str) -> float | _NotJson:
    value = float(text)
    return value if math.isfinite(value) else _NotJson(text)


def _whole(text: str) -> int | _NotJson:
    try:
        return int(text)
    except ValueError:  # Python limits the number of digits
        return _NotJson(text)
