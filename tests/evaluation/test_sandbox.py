"""Programs that loop, fork, kill, write, eat memory or reach out cost themselves and nothing else."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dlm.evaluation.sandbox import Sandbox
from tests.running import TIMEOUT

SHORT = Sandbox(seconds=2.0, memory_mib=512)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(seconds=TIMEOUT, memory_mib=512)


def test_a_program_that_ends_passes(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import math, collections\nassert math.comb(4, 2) == 6\nprint('x' * 100_000)")
    assert (outcome.passed, outcome.reason) == (True, "")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("raise KeyError('x')", "KeyError"),
        ("def f(:", "SyntaxError"),
        ("f = lambda: f()\nf()", "RecursionError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended before its tests did"),
        ("\0", "SyntaxError"),
        ("(" * 5000, "Error"),
    ],
)
def test_a_program_that_does_not_end_well_fails(program: str, said: str, sandbox: Sandbox) -> None:
    outcome = sandbox.run(program)
    assert not outcome.passed
    assert said in outcome.reason


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(10**6)", "import threading; "
                                     "threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()\n"
                                     "while True: pass"])  # fmt: skip
def test_a_program_that_does_not_end_is_killed(program: str) -> None:
    outcome = SHORT.run(program)
    assert (outcome.passed, outcome.reason) == (False, "not finished after 2 s")


REFUSED = {
    "fork": "import os; os.fork()",
    "fork bomb": "import os\nwhile True: os.fork()",
    "subprocess": "import subprocess; subprocess.run(['true'])",
    "shell": "import os; assert os.system('true') == 0",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start(); p.join()",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "kill all": "import os; os.kill(-1, 9)",
    "kill the parent": "import os; os.kill(os.getppid(), 9)",
    "socket": "import socket; socket.socket()",
    "connect": "import socket; socket.create_connection(('127.0.0.1', 80), 1)",
    "write": "open('new', 'w')",
    "write elsewhere": "open('/tmp/dlm-sandbox-test', 'a')",
    "temporary file": "import tempfile; tempfile.NamedTemporaryFile()",
    "remove": "import os; os.unlink({victim!r})",
    "rename": "import os; os.rename({victim!r}, {victim!r} + '2')",
    "truncate": "import os; os.truncate({victim!r}, 0)",
    "change mode": "import os; os.chmod({victim!r}, 0)",
    "folder": "import os; os.mkdir('new')",
    "raise a limit": "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
    "ptrace": "import ctypes; libc = ctypes.CDLL(None); assert libc.ptrace(0, 0, 0, 0) == 0",
    "memory file": "import os; os.memfd_create('x')",
}


@pytest.mark.parametrize("program", REFUSED.values(), ids=REFUSED.keys())
def test_nothing_but_computing_is_allowed(program: str, sandbox: Sandbox, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    outcome = sandbox.run(program.replace("{victim!r}", repr(str(victim))))
    assert not outcome.passed
    assert "Error" in outcome.reason, outcome.reason
    assert victim.read_text() == "whole"
    assert os.listdir(tmp_path) == ["victim"]
    assert victim.stat().st_mode & 0o777


def test_memory_is_bounded(sandbox: Sandbox) -> None:
    outcome = sandbox.run("x = bytearray(2**30)")
    assert not outcome.passed
    assert "MemoryError" in outcome.reason
    assert not sandbox.run("x = []\nwhile True: x.append('x' * 2**20)").passed


def test_threads_and_reading_are_allowed(sandbox: Sandbox) -> None:
    program = (
        "import threading, json, os\nfound = []\n"
        "threads = [threading.Thread(target=found.append, args=(n,)) for n in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert sorted(found) == [0, 1, 2, 3]\nassert open(json.__file__).read()\nassert os.listdir('.') == []"
    )
    assert sandbox.run(program).reason == ""


def test_the_environment_stays_outside(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert sandbox.run("import os; assert 'secret' not in os.environ.values()").passed


def test_a_program_cannot_claim_to_have_passed(sandbox: Sandbox) -> None:
    forged = '{"mark": "x", "state": "passed", "reason": ""}'
    tries = f"for d in range(3, 20):\n    try: os.write(d, {forged.encode()!r})\n    except OSError: pass"
    program = f"import os\n{tries}\nos._exit(0)"
    assert not sandbox.run(program).passed


def test_many_at_once_and_nothing_is_left(sandbox: Sandbox) -> None:
    passed: list[bool] = []
    threads = [
        threading.Thread(target=lambda n=n: passed.append(sandbox.run(f"assert {n} % 2").passed)) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(passed) == [False] * 3 + [True] * 3
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    names = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children if Path(f"/proc/{child}").exists()]
    assert not [name for name in names if b"confinement" in name]


def test_a_folder_of_its_own_that_is_gone_afterwards(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert sandbox.run(f"import os; assert os.getcwd().startswith({str(tmp_path)!r})").passed
    assert not list(tmp_path.iterdir())
