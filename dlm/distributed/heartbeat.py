"""How the processes of an attempt know of each other: a small status file each, rewritten every second.

A thread of each process writes it, and sees to it that all stop when one is asked to. Another thread sees to it that
nobody outlives the process that launched it. There is no process group in this: it would go with rank 0.

Knows neither torch nor Lightning.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dlm.distributed.processes import is_alive, machine, process_birth

BEAT = 1.0
"""Seconds between two beats."""
SILENCE = 60.0
"""Seconds without a beat after which a process on another machine counts as dead."""
STATUS = ".status.json"
"""End of the name of a status file."""


@dataclass(frozen=True)
class WorkerStatus:
    """What one process tells the others.

    Attributes:
        worker: its name in the attempt, such as `rank1`.
        machine, pid, birth: which process it is.
        beat: counts up while it lives.
        state: `starting`, `running`, `done`, `stopped` (asked to end early) or `failed`.
        rows, errors: answers written, refused prompts among them.
        tokens, nfe: visible tokens, and forwards summed over answers.
        steps, occupancy: model calls, and sequences a call holds on average as a share of the most it may.
        message: why it failed.
    """

    worker: str
    machine: str
    pid: int
    birth: str
    beat: int = 0
    state: str = "starting"
    rows: int = 0
    errors: int = 0
    tokens: int = 0
    nfe: int = 0
    steps: int = 0
    occupancy: float = 0.0
    message: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ("done", "stopped", "failed")


class StopFlag:
    """Asks the work to end early; remembers the signal that asked."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._actions: list[Callable[[], None]] = []
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self._event.is_set()

    def on_stop(self, action: Callable[[], None]) -> None:
        """Call `action` when the switch is thrown, or at once if it has been."""
        self._actions.append(action)
        if self:
            action()

    def throw(self, signum: int | None = None) -> None:
        """Safe in a signal handler and from any thread; only the first call acts."""
        if signum is not None and self.signum is None:
            self.signum = signum
        if not self._event.is_set():
            self._event.set()
            for action in list(self._actions):
                action()


class Heartbeat:
    """Beats while the process works; use as a context.

    Args:
        folder: the attempt's folder.
        worker: this process's name.
        stop: thrown when another process leaves a stop mark; throwing it leaves one.
        mark: name of the stop mark of those who stop together.
    """

    def __init__(self, folder: Path, worker: str, stop: StopFlag, mark: str = "stop") -> None:
        self.folder, self.stop, self._mark = folder, stop, folder / mark
        self.status = WorkerStatus(worker, machine(), os.getpid(), process_birth(os.getpid()))
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> Self:
        self.update()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if not self.status.ended:
            reason = f"{kind.__name__}: {error}" if kind is not None else ""
            self.update(state="failed" if kind is not None else "done", message=reason)

    def on_beat(self, listener: Callable[[], None]) -> None:
        """Call `listener` every second, in the heart's thread."""
        self._listeners.append(listener)

    def update(self, **changes: Any) -> None:
        """Change the status; written with the next beat, or at once when the state changes."""
        with self._lock:
            before = self.status
            self.status = replace(before, **changes)
            if before.state != self.status.state or before.beat != self.status.beat or before.beat == 0:
                self._write()

    def count(self, *, rows: int, errors: int, tokens: int, nfe: int) -> None:
        """Add to the totals; the next beat tells the others."""
        with self._lock:
            old = self.status
            self.status = replace(
                old,
                rows=old.rows + rows,
                errors=old.errors + errors,
                tokens=old.tokens + tokens,
                nfe=old.nfe + nfe,
            )

    def _write(self) -> None:
        draft = self.folder / f".{self.status.worker}.draft"
        try:
            draft.write_text(json.dumps(asdict(self.status)))
            draft.replace(status_file(self.folder, self.status.worker))
        except OSError as error:
            # A full disk is reported by whoever writes answers; here it costs the others a look at this process.
            self.status = replace(self.status, message=f"no status written: {error.strerror}")

    def _run(self) -> None:
        while not self._end.wait(BEAT):
            if self._mark.exists():
                self.stop.throw()
            elif self.stop:
                self._mark.touch()
            self.update(beat=self.status.beat + 1)
            for listener in self._listeners:
                listener()


def status_file(folder: Path, worker: str) -> Path:
    return folder / f"{worker}{STATUS}"


def read_status(folder: Path, worker: str) -> WorkerStatus | None:
    """What `worker` last told; None when it has told nothing yet."""
    try:
        return WorkerStatus(**json.loads(status_file(folder, worker).read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        # Not there yet, a network file system is between two versions of it, or somebody has damaged it.
        return None


@dataclass
class _LastBeat:
    beat: int
    at: float


class PeerMonitor:
    """The other processes of the attempt, as this one sees them."""

    def __init__(self, folder: Path, workers: list[str]) -> None:
        self.folder, self.workers = folder, workers
        self._here = machine()
        self._seen: dict[str, _LastBeat] = {}

    def statuses(self) -> list[WorkerStatus]:
        """What each has last told."""
        return [status for worker in self.workers if (status := read_status(self.folder, worker)) is not None]

    def unfinished(self) -> list[str]:
        """Who has neither ended nor died."""
        return [worker for worker in self.workers if not self._over(worker)]

    def dead(self) -> list[str]:
        """Who died without a word."""
        statuses = {status.worker: status for status in self.statuses()}
        return [w for w in self.workers if self._over(w) and not (w in statuses and statuses[w].ended)]

    def failed(self) -> list[str]:
        """Who failed or died, and why."""
        told = [f"{status.worker} failed: {status.message}" for status in self.statuses() if status.state == "failed"]
        return told + [f"{worker} died" for worker in self.dead()]

    def wait(self) -> None:
        """Return when all others have ended or died."""
        while self.unfinished():
            time.sleep(BEAT / 4)

    def _over(self, worker: str) -> bool:
        status, now = read_status(self.folder, worker), time.monotonic()
        beat = -1 if status is None else status.beat
        seen = self._seen.get(worker)
        if seen is None or seen.beat != beat:
            seen = self._seen[worker] = _LastBeat(beat, now)
        if status is None:
            return now - seen.at > SILENCE
        if status.ended:
            return True
        if status.machine == self._here:
            return not is_alive(status.pid, status.birth)
        return now - seen.at > SILENCE
