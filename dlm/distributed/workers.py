"""Worker processes of this machine that share a model with the process that starts them.

They are started as programs of their own, so that a user's script needs no `if __name__ == "__main__"`. Nothing has a
fixed name or port: the processes find each other through a file in a private temporary folder, and talk over ports that
the system chooses, on the loopback interface. A worker ends when its parent does, whatever happens to that.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import FileStore

from dlm.distributed.group import POLL, ParallelGroup
from dlm.distributed.processes import die_with
from dlm.errors import ConfigError, RunError

FAREWELL = 10.0
"""Seconds that a worker has to end by itself, once told or once its group broke."""


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is to do.

    Attributes:
        folder: where the processes find each other and leave tracebacks.
        parent: process id of rank 0.
        backend: of the sums.
        threads: of torch.
        device: `cuda:1` and the like, made the current one; None on a CPU.
        serve: called with the group; returns when rank 0 says so.
    """

    folder: Path
    parent: int
    rank: int
    size: int
    backend: str
    threads: int
    device: str | None
    serve: Callable[[ParallelGroup], None]

    def group(self, **watching: Any) -> ParallelGroup:
        """Join the others."""
        store = FileStore(str(self.folder / "store"), self.size)
        return ParallelGroup(store, self.rank, self.size, backend=self.backend, loopback=True, **watching)


class Workers:
    """Ranks 1 to `size` - 1 of a group whose rank 0 is this process. Use `group` to join them, `end` when done.

    Args:
        size: processes in all.
        serve: what each worker does; it and what it holds must be picklable.
        backend: of the sums.
        devices: the device of each rank; None on a CPU.
    """

    def __init__(
        self,
        size: int,
        serve: Callable[[ParallelGroup], None],
        *,
        backend: str = "gloo",
        devices: Sequence[str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dlm-group-"))
        self.threads_before = torch.get_num_threads()
        threads = max(1, self.threads_before // size) if devices is None else self.threads_before
        self._tasks = [
            WorkerTask(
                self.folder,
                os.getpid(),
                rank,
                size,
                backend,
                threads,
                None if devices is None else devices[rank],
                serve,
            )
            for rank in range(size)
        ]
        self.processes: list[subprocess.Popen[bytes]] = []
        self._finalizer = weakref.finalize(self, _sweep, self.processes, self.folder)
        # Other numbers of threads may give other bits, and the processes must agree on every bit.
        torch.set_num_threads(threads)
        try:
            for task in self._tasks[1:]:
                self.processes.append(_start(task))
        except BaseException:
            self.end(0)
            raise

    def group(self) -> ParallelGroup:
        """Join the workers as rank 0. Raises `RunError` with a worker's traceback when one failed to start."""
        group = self._tasks[0].group(explain=self.explain, alive=self.check)
        if group.backend == "nccl":  # gloo notices a lost connection by itself
            self.watch(group.abort)
        return group

    def check(self) -> None:
        """Raise `RunError` when a worker has ended."""
        if any(process.poll() is not None for process in self.processes):
            raise RunError(f"tensor parallelism over {len(self._tasks)} processes broke off: {self.explain()}")

    def watch(self, action: Callable[[], None]) -> None:
        """Call `action` once, in a thread of its own, when a worker ends; for sums that wait for ever."""
        processes, swept = self.processes, self._finalizer

        def wait() -> None:
            while swept.alive and all(process.poll() is None for process in processes):
                time.sleep(POLL)
            if swept.alive:
                action()

        threading.Thread(target=wait, name="watch-workers", daemon=True).start()

    def explain(self) -> str:
        """What became of the workers that ended, each with its traceback."""
        limit = time.monotonic() + FAREWELL / 4
        while time.monotonic() < limit and all(process.poll() is None for process in self.processes):
            time.sleep(POLL)
        lines = []
        for rank, process in enumerate(self.processes, 1):
            code = process.poll()
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                lines.append(f"rank {rank} (process {process.pid}) {how}")
                left = _traceback_file(self.folder, rank)
                if left.exists():
                    lines.append(left.read_text(encoding="utf-8"))
        return "\n".join(lines) or "a connection was lost while all processes live"

    def end(self, patience: float = FAREWELL) -> None:
        """Wait `patience` seconds for the workers to end, then kill those that have not."""
        limit = time.monotonic() + patience
        while time.monotonic() < limit and any(process.poll() is None for process in self.processes):
            time.sleep(POLL)
        if self._finalizer.detach():
            torch.set_num_threads(self.threads_before)
            _sweep(self.processes, self.folder)


def cuda_devices(size: int) -> list[str]:
    """The first `size` CUDA devices; `ConfigError` where fewer are visible."""
    here = torch.cuda.device_count()
    if here < size:
        raise ConfigError(f"tensor_parallel_size={size} needs {size} CUDA devices, {here} are visible")
    return [f"cuda:{index}" for index in range(size)]


def _traceback_file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.traceback"


def _sweep(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Leave no process and no file."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _start(task: WorkerTask) -> subprocess.Popen[bytes]:
    program = f"import sys; sys.path[:] = {sys.path!r}; from dlm.distributed.workers import main; main()"
    payload = pickle.dumps(task)
    process = subprocess.Popen([sys.executable, "-c", program, str(task.folder), str(task.rank)], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(payload)
        process.stdin.close()
    except BrokenPipeError:  # it ended at once; `explain` says why
        process.wait()
    return process


def main() -> None:
    """A worker's life. Its standard input is its task."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent decides
    code = 0
    try:
        task = pickle.load(sys.stdin.buffer)
        die_with(task.parent)
        torch.set_num_threads(task.threads)
        if task.device is not None:
            torch.cuda.set_device(task.device)
        task.serve(task.group())
    except BaseException:
        code = 1
        if folder.is_dir():
            _traceback_file(folder, rank).write_text(traceback.format_exc(), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's end: threads of a broken group may wait there for ever.
    os._exit(code)
