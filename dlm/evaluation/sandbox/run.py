"""Runs a program written by a model, and the tests that judge it, in two processes that can do little but compute.

The program's process starts in an empty temporary folder with a clean environment, and gives up its rights before it
sees the program (`dlm.evaluation.sandbox`): it cannot start or signal processes, open sockets, take locks or change
files, and can read only the Python installation. Nothing is left of it once it is killed, at the latest when its time
is up. Time and memory are limited.

The tests run in the other process, under the same restrictions. They call the program's functions from there and get
values back, not objects. The program sees the arguments of a call, but neither the tests nor the expected values, and
cannot influence the verdict otherwise. `docs/evaluation.md` says what remains possible.

Without Landlock in the kernel (`reads_are_closed`), the program can read whatever the user can.
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
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.errors import RunError
from dlm.evaluation.sandbox.landlock import available

MOST = 65_536
"""Bytes read from the judge, at most; tests are foreign text too. A pipe holds no more."""
START = Path(__file__).with_name("start.py")


@dataclass(frozen=True)
class ProgramOutcome:
    """What became of a program.

    Attributes:
        passed: its tests passed; without tests, it ran to its end.
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

    def run(self, program: str, tests: str = "", setup: str = "") -> ProgramOutcome:
        """Run a program and then its tests, to their end or until their time is up.

        Args:
            program: the text of a module.
            tests: statements that raise unless the program is right; they call its functions by name. Assertions inside
                `program` are no substitute: a program can skip them.
            setup: what the tests need, such as imports and helpers. Repeat it in `program` if the program needs it too.

        Raises:
            RunError: this system cannot confine a process; nothing of the program has run.
        """
        warn_of_open_files()
        asked = json.dumps({"program": program, "tests": tests, "setup": setup}).encode()
        until = time.monotonic() + self.seconds
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dlm-answer-"))
            judge, runner, verdicts = self._start(folder, stack)
            try:
                judge.communicate(asked, timeout=self.seconds)
                ready, verdict = _verdict(os.read(verdicts, MOST))
                if verdict.get("state") == "ended" and not verdict["reason"]:
                    runner.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                return ProgramOutcome(False, f"not finished after {self.seconds:g} s")
        if not ready.get("confined", True):
            raise RunError(
                f"answers that are code cannot be run here: {ready['reason']}. Run them on Linux, x86_64 or aarch64"
            )
        if not verdict:
            return ProgramOutcome(False, f"its tests did not finish ({_ending(judge.returncode)})")
        if verdict["state"] == "ended":
            return ProgramOutcome(
                False, f"ended before its tests did ({verdict['reason'] or _ending(runner.returncode)})"
            )
        return ProgramOutcome(verdict["state"] == "passed", _line(verdict["reason"]))

    def _start(self, folder: str, stack: ExitStack) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes], int]:
        """Start the judge and the program, with a pipe each way between them; all of it ends with `stack`.

        Returns both and the descriptor that the verdict can be read from once the judge has ended.
        """
        asked, asks = os.pipe()
        answers, answered = os.pipe()
        heard, verdicts = os.pipe()
        stack.callback(os.close, heard)
        try:
            judge = self._process("judge", (answers, asks), (verdicts,), folder, stack)
            runner = self._process("program", (asked, answered), (), folder, stack)
        finally:
            for descriptor in (asked, asks, answers, answered, verdicts):
                os.close(descriptor)
        return judge, runner, heard

    def _process(
        self, side: str, ends: tuple[int, int], more: tuple[int, ...], folder: str, stack: ExitStack
    ) -> subprocess.Popen[bytes]:
        numbers = (*ends, math.ceil(self.seconds) + 1, self.memory_mib, *more)
        process = subprocess.Popen(
            [sys.executable, "-I", str(START), side, *map(str, numbers)],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.PIPE if side == "judge" else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(*ends, *more),
            start_new_session=True,
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        return process


def reads_are_closed() -> bool:
    """Whether programs can be kept from reading the user's files; this takes Landlock (Linux 5.13 or later)."""
    return available()


def warn_of_open_files() -> None:
    """Warn if programs can read the user's files; Python shows this once for each caller."""
    if not reads_are_closed():
        warnings.warn(
            "this kernel has no Landlock (Linux 5.13 or later): programs that are judged can read every file that you "
            "can, secrets among them. Use another machine, or a container without secrets",
            RuntimeWarning,
            stacklevel=2,
        )


def _verdict(said: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The judge's first line, about confinement, and its last, the verdict; empty if the tests did not finish."""
    try:
        first, *later = [dict(json.loads(line)) for line in said.splitlines()]
        verdict = {name: str(later[-1][name]) for name in ("state", "reason")} if later else {}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}, {}
    return first, verdict


def _line(text: str) -> str:
    """Text from the program as one line of printable characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _environment(folder: str) -> dict[str, str]:
    """Nothing of this process's own but where its libraries are; numerical ones take memory for each thread."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": "/usr/bin:/bin", "HOME": folder, "LANG": "C.UTF-8", **alone, **kept}


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}; memory or processor time may have run out"
