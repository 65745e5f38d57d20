"""Hostile checkpoints by the thousand: `python -m tests.fuzz_checkpoints count=20000 seed=0`.

Every reader of a checkpoint gets inputs that were made from valid ones by mutation (`tests.fuzzing`). Each must load or
be refused with an error of the tree within seconds. After each, the classes and functions that an attack could change
are compared with what they were, and so are the files beside its folder; whatever is written is seen as it happens.
Prints counts by kind and outcome; fails where there is another outcome than `loaded` and `refused`.

    kinds=metadata,template     these kinds alone
"""

from __future__ import annotations

import builtins
import collections
import enum
import logging
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata

from dlm.errors import CheckpointError, RequestError
from tests.fuzzing.kinds import KINDS, Bases, Kind
from tests.fuzzing.mutations import MARK

SECONDS = 5.0
"""Longer, of the processor's time, is a failure, and so is four times that on the clock."""

WATCHED: tuple[Any, ...] = (
    pathlib.PosixPath, pathlib.PurePosixPath, pathlib.Path, pathlib.PurePath, torch.Size,
    torch.serialization._get_layout, metadata, metadata.Metadata, metadata.MetadataIndex,
    metadata.TensorStorageMetadata, metadata.StorageMeta, metadata.BytesStorageMetadata, metadata.ChunkStorageMetadata,
    metadata.TensorProperties, filesystem._StorageInfo,
    metadata._MEM_FORMAT_ENCODING, collections.OrderedDict, enum.Enum, builtins, pickle, torch.Tensor,
)  # fmt: skip

WRITES = frozenset(
    {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
     "shutil.rmtree", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
)  # fmt: skip


class Hang(BaseException):
    """A reader that went on after its time."""


class Watch:
    """Sees what a reader writes, and whether it leaves the process as it was."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._event)
        self._before = self._state()

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in WRITES:
            self.seen.append(f"{event} {args[:1]}")

    @staticmethod
    def _state() -> tuple[dict[str, int], ...]:
        return tuple({name: id(value) for name, value in vars(each).items()} for each in WATCHED)

    def changed(self) -> bool:
        return self._state() != self._before


def outcome(error: BaseException | None, seconds: float, watch: Watch) -> str:
    """`loaded`, `refused`, or what is wrong."""
    if watch.seen:
        return f"WROTE {watch.seen[0]}"
    if watch.changed():
        return "CHANGED a class"
    if isinstance(error, Hang) or seconds > SECONDS:
        return "HUNG"
    if error is None:
        return "loaded"
    if not isinstance(error, CheckpointError | RequestError):
        return f"RAISED {type(error).__name__}"
    if MARK in str(error) or len(str(error)) > 4000:
        return "SAID too much"
    return "refused"


def run(kinds: list[str], count: int, seed: int, root: Path) -> Counter[tuple[str, str, bool]]:
    """Outcomes by kind, and whether the first parse succeeded."""
    counts: Counter[tuple[str, str, bool]] = Counter()
    bases, witness = Bases.make(root), root / "witness"
    witness.mkdir()
    (witness / "file").write_text("as it was")
    os.chdir(witness)
    for name in kinds:  # what the libraries write on their first use is theirs
        KINDS[name].read(bases, KINDS[name].base(bases))
    watch = Watch()
    signal.signal(signal.SIGALRM, _hang)
    for number in range(count):
        name = kinds[number % len(kinds)]
        kind, folder = KINDS[name], root / "input"
        kind.make(random.Random(f"{seed} {number}"), bases, folder)
        parsed, begun = kind.parsed(folder), time.process_time()
        watch.on, watch.seen = True, []
        error = _attempt(kind, bases, folder)
        watch.on = False
        found = outcome(error, time.process_time() - begun, watch)
        if [path.read_text() for path in witness.iterdir()] != ["as it was"]:
            found = "WROTE beside its folder"
        counts[name, found, parsed] += 1
        if found not in ("loaded", "refused"):
            print(f"input {number} of {name}: {found}: {str(error)[:200]!r}", flush=True)
        shutil.rmtree(folder)
    return counts


def _attempt(kind: Kind, bases: Bases, folder: Path) -> BaseException | None:
    """What a reader raises; `Hang` where it takes four times its time, as soon as Python is reached."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS)
            kind.read(bases, folder)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def _hang(signum: int, frame: FrameType | None) -> None:
    raise Hang


def show(counts: Counter[tuple[str, str, bool]]) -> bool:
    """Print the counts; returns whether all is well."""
    for name in dict.fromkeys(name for name, _, _ in counts):
        mine = {key[1:]: number for key, number in counts.items() if key[0] == name}
        total, parsed = sum(mine.values()), sum(number for (_, first), number in mine.items() if first)
        by_outcome: Counter[str] = Counter()
        for (found, _), number in mine.items():
            by_outcome[found] += number
        listed = ", ".join(f"{found} {number}" for found, number in sorted(by_outcome.items()))
        print(f"{name:18} {total:6} inputs, {100 * parsed / total:3.0f} % pass the first parse: {listed}")
    total, parsed = sum(counts.values()), sum(number for key, number in counts.items() if key[2])
    print(f"{'all':18} {total:6} inputs, {100 * parsed / total:3.0f} % pass the first parse")
    return {found for _, found, _ in counts} <= {"loaded", "refused"}


def main() -> int:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    kinds = options.get("kinds", ",".join(KINDS)).split(",")
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    with tempfile.TemporaryDirectory() as root:
        counts = run(kinds, int(options.get("count", 20000)), int(options.get("seed", 0)), Path(root).resolve())
        os.chdir("/")
    return 0 if show(counts) else 1


if __name__ == "__main__":
    sys.exit(main())
