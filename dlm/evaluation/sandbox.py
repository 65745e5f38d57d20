"""Runs a program that a model wrote, in a process of its own that can do nothing but compute and read.

The process begins in an empty temporary folder, without this one's environment, and gives up its rights before it sees
the program (`dlm.evaluation.confinement`): it can start no process, signal none, open no socket and change no file. So
nothing of it is left once it is killed, which happens when its time is up. Time and memory are bounded.

It can read what the user can read. Run what you would not let read in a container.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.errors import RunError

CHILD = Path(__file__).with_name("confinement.py")
MOST = 65_536
"""Bytes that are read of what a child says."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: it ran to its end.
        reason: why not, in a line; empty where it passed.
    """

    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Sandbox:
    """How much a program may take.

    Attributes:
        seconds: wall clock, the interpreter's start included.
        memory_mib: address space, in MiB.
    """

    seconds: float = 10.0
    memory_mib: int = 1024

    def run(self, program: str) -> Outcome:
        """Run a program to its end, or kill it.

        Raises:
            RunError: this system cannot confine a process; nothing of the program has run.
        """
        with tempfile.TemporaryDirectory(prefix="dlm-answer-") as folder:
            return self._run(program, folder)

    def _run(self, program: str, folder: str) -> Outcome:
        mine, its = os.pipe()
        mark = secrets.token_hex(8)
        limits = [math.ceil(self.seconds) + 1, self.memory_mib]
        asked = {"program": program, "mark": mark, "limits": limits, "descriptor": its}
        try:
            try:
                child = subprocess.Popen(
                    [sys.executable, "-I", "-B", str(CHILD)],
                    cwd=folder,
                    env=_environment(folder),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(its,),
                    start_new_session=True,
                )
            finally:
                os.close(its)
            with child:
                in_time = _finish(child, json.dumps(asked).encode(), self.seconds)
            os.set_blocking(mine, False)
            said = _read(mine)
        finally:
            os.close(mine)
        if not in_time:
            return Outcome(False, f"not finished after {self.seconds:g} s")
        try:
            verdict: dict[str, Any] = json.loads(said)
        except ValueError:
            verdict = {}
        if verdict.get("mark") != mark:
            return Outcome(False, f"ended before its tests did ({_ending(child.returncode)})")
        if verdict["state"] == "unconfined":
            raise RunError(f"answers that are code cannot be run here: {verdict['reason']}. Run them on Linux")
        return Outcome(verdict["state"] == "passed", verdict["reason"])


def _environment(folder: str) -> dict[str, str]:
    """Nothing of this process's own but where its libraries are; numerical ones take memory for each thread."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": "/usr/bin:/bin", "HOME": folder, "LANG": "C.UTF-8", **alone, **kept}


def _finish(child: subprocess.Popen[bytes], given: bytes, seconds: float) -> bool:
    """Hand over what the child reads and wait for its end; False where it was killed."""
    try:
        child.communicate(given, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    finally:
        if child.poll() is None:
            child.kill()
    return True


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, MOST)
    except BlockingIOError:
        return b""


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}; memory or processor time may have run out"
