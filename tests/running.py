"""Real runs of the command line in processes of their own, and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TINY = ("model=random", "data=jsonl", "generation.gen_length=32")
"""A model of random weights: it needs no file and decodes hundreds of prompts in seconds."""

TIMEOUT = 300.0
"""Seconds that a run may take on a busy machine; an idle one needs a tenth."""


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what a launcher or another run has left in it."""
    foreign = ("DLM_RUN_DIR", "DLM_ATTEMPT", "DLM_LAUNCHER_PID", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in foreign and not key.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_", "WANDB_"))
    }
    return {**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **extra}


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def torchrun(processes: int, *arguments: str) -> list[str]:
    return python("torch.distributed.run", f"--nproc-per-node={processes}", "-m", *arguments)


@contextmanager
def started(command: Sequence[str], cwd: Path, **extra: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a session of its own, so that a signal to it reaches nobody else; none of it is left afterwards."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen[str], timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    """Wait for a run."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"{process.args} took more than {timeout} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(command: Sequence[str], cwd: Path, timeout: float = TIMEOUT, **extra: str) -> subprocess.CompletedProcess[str]:
    with started(command, cwd, **extra) as process:
        return finish(process, timeout)


def wait_until(
    condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None, seconds: float = TIMEOUT
) -> None:
    """Return once `condition` holds; fail when `process` ends before, or when it is clear that it never will.

    `seconds` bounds a hang alone: what a test wants to hold, it says by what it finds afterwards."""
    until = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            out, err = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before {what}:\n{out}\n{err}")
        if time.monotonic() > until:
            raise AssertionError(f"{what} did not happen within {seconds} s")
        time.sleep(0.05)


def processes_of(run_dir: Path) -> list[int]:
    """Processes whose command line names the run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"run_dir={run_dir}".encode() in line:
                found.append(int(entry.name))
    return found


def race(action: Callable[[int], object], runners: int = 8) -> None:
    """Call `action` with 0, 1, ... in a thread each, all at once; return when all are through."""
    threads = [threading.Thread(target=action, args=(n,)) for n in range(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write_prompts(path: Path, count: int) -> Path:
    """Prompts of different lengths, every fourth with an id of its own."""
    rows = []
    for number in range(count):
        row: dict[str, Any] = {"prompt": f"Question {number}: " + "how many " * (number * 7 % 23) + "apples?"}
        if number % 4 == 0:
            row["id"] = f"own-{number}"
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(run_dir: Path) -> list[dict[str, Any]]:
    """The run's predictions without the one field that is a timing."""
    rows = rows_of(run_dir / "predictions.jsonl")
    for row in rows:
        row.pop("seconds", None)
    return rows


def shard_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Whole lines of all shards; a last line that is torn is left out."""
    rows = []
    for shard in sorted((run_dir / "shards").glob("*.jsonl")):
        whole, _, _ = shard.read_text(encoding="utf-8").rpartition("\n")
        rows += [json.loads(line) for line in whole.splitlines()]
    return rows
