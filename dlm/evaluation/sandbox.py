"""Runs a program that a model wrote, and the tests that judge it, in two processes that can do nothing but compute.

The program's process begins in an empty temporary folder, without this one's environment and descriptors, and gives up
its rights before it sees the program (`dlm.evaluation.confined`): it can start no process, signal none, open no socket,
take no lock and change no file, and read nothing but the Python installation. So nothing of it is left once it is
killed, which happens when its time is up. Time and memory are bounded.

The tests run in the other process, as confined as the first. They call the program's functions from there, and get
values back, never objects: the program sees the arguments of a call, neither tests nor expected values, and reaches no
word of the verdict.

Where the kernel has no Landlock (`reads_are_closed`) the program can read what the user can.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.errors import RunError
from dlm.evaluation.confined.landlock import available

START = Path(__file__).parent / "confined" / "start.py"


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: its tests held; without tests, it ran to its end.
        reason: why not, in a line; empty where it passed.
    """

    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Sandbox:
    """How much a program may take.

    Attributes:
        seconds: wall clock, the interpreters' start included.
        memory_mib: address space of each of the two processes, in MiB.
    """

    seconds: float = 10.0
    memory_mib: int = 1024

    def run(self, program: str, tests: str = "", setup: str = "") -> Outcome:
        """Run a program and then its tests, to their end or until their time is up.

        Args:
            program: the text of a module.
            tests: what must hold of it, as statements; they call its functions by name. What a program asserts of
                itself, within `program`, it can also leave out.
            setup: what the tests need of their own, such as imports. The program has it only where `program` says so.

        Raises:
            RunError: this system cannot confine a process; nothing of the program has run.
        """
        asked = json.dumps({"program": program, "tests": tests, "setup": setup}).encode()
        until = time.monotonic() + self.seconds
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dlm-answer-"))
            judge, runner = self._start(folder, stack)
            try:
                said, _ = judge.communicate(asked, timeout=self.seconds)
                verdict: dict[str, Any] = json.loads(said) if said else {"state": "stopped"}
                if verdict["state"] == "ended" and not verdict["reason"]:
                    runner.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                return Outcome(False, f"not finished after {self.seconds:g} s")
        if verdict["state"] == "unconfined":
            raise RunError(
                f"answers that are code cannot be run here: {verdict['reason']}. Run them on Linux, x86_64 or aarch64"
            )
        if verdict["state"] == "stopped":
            return Outcome(False, f"its tests came to no end ({_ending(judge.returncode)})")
        if verdict["state"] == "ended":
            return Outcome(False, f"ended before its tests did ({verdict['reason'] or _ending(runner.returncode)})")
        return Outcome(verdict["state"] == "passed", verdict["reason"])

    def _start(self, folder: str, stack: ExitStack) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        """The judge's process and the program's, a pipe each way between them; both are killed when `stack` ends."""
        asked, asks = os.pipe()
        answers, answered = os.pipe()
        try:
            judge = self._process("judge", answers, asks, folder, subprocess.PIPE, stack)
            runner = self._process("program", asked, answered, folder, subprocess.DEVNULL, stack)
        finally:
            for descriptor in (asked, asks, answers, answered):
                os.close(descriptor)
        return judge, runner

    def _process(
        self, side: str, reads: int, writes: int, folder: str, standard: int, stack: ExitStack
    ) -> subprocess.Popen[bytes]:
        limits = (math.ceil(self.seconds) + 1, self.memory_mib)
        process = subprocess.Popen(
            [sys.executable, "-I", str(START), side, *map(str, (reads, writes, *limits))],
            cwd=folder,
            env=_environment(folder),
            stdin=standard,
            stdout=standard,
            stderr=subprocess.DEVNULL,
            pass_fds=(reads, writes),
            start_new_session=True,
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        return process


def reads_are_closed() -> bool:
    """Whether programs can be kept from reading what the user can; it takes Landlock, of Linux 5.13 or later."""
    return available()


def _environment(folder: str) -> dict[str, str]:
    """Nothing of this process's own but where its libraries are; numerical ones take memory for each thread."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": "/usr/bin:/bin", "HOME": folder, "LANG": "C.UTF-8", **alone, **kept}


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}; memory or processor time may have run out"
