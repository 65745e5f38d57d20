"""What an offline run of W&B has kept: its transaction log, read with W&B's own message types.

The format is that of LevelDB's log: blocks of 32 KiB with records of checksum, length and type. A header precedes them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 32 * 1024
"""Bytes."""
HEAD = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Kept:
    """Everything that the log says.

    Attributes:
        name, group, job_type: of the run.
        config, summary: by key.
        history: entries, each by key.
        artifacts: by name without version, the paths in them.
        exit_code: None where the run was not finished.
    """

    name: str = ""
    group: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    exit_code: int | None = None


def read(path: Path) -> Kept:
    kept = Kept()
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            kept.name, kept.group, kept.job_type = record.run.display_name, record.run.run_group, record.run.job_type
            kept.config |= _values(record.run.config.update)
        elif kind == "config":
            kept.config |= _values(record.config.update)
        elif kind == "summary":
            kept.summary |= _values(record.summary.update)
        elif kind == "history":
            kept.history.append(_values(record.history.item))
        elif kind == "artifact":
            kept.artifacts[record.artifact.name] = [entry.path for entry in record.artifact.manifest.contents]
        elif kind == "exit":
            kept.exit_code = record.exit.exit_code
    return kept


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[Record]:
    place, parts = HEADER, b""
    while place + HEAD.size <= len(data):
        room = BLOCK - place % BLOCK
        if room < HEAD.size:
            place += room
            continue
        _, length, kind = HEAD.unpack_from(data, place)
        place += HEAD.size
        assert kind in (WHOLE, FIRST, MIDDLE, LAST), f"no log of W&B at byte {place}"
        parts += data[place : place + length]
        place += length
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
