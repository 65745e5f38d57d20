"""Programs that loop, fork, kill, write, eat memory or reach out cost themselves and nothing else."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dlm.errors import RunError
from dlm.evaluation.sandbox.run import ProgramOutcome, Sandbox, reads_are_closed
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
OUTSIDE = {
    "priority of the parent": "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 15)",
    "priority of the user's": "import os; os.setpriority(os.PRIO_USER, os.getuid(), 15)",
    "nice": "import os; os.nice(1)",
    "processors of the parent": "import os; os.sched_setaffinity(os.getppid(), {0})",
    "scheduler of the parent": "import os; os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))",
    "lock": "import fcntl; fcntl.flock(open({library!r}), fcntl.LOCK_SH)",
    "lock of a range": "import fcntl; fcntl.lockf(open({library!r}), fcntl.LOCK_SH)",
    "lease": "import fcntl; fcntl.fcntl(open({library!r}), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "owner of a descriptor": "import fcntl, os; fcntl.fcntl(open({library!r}), fcntl.F_SETOWN, os.getppid())",
    "flags of a file": "import fcntl; fcntl.ioctl(open({library!r}), 0x40086602, bytes(8))",
    "flags of a file, asked for": "import fcntl; fcntl.ioctl(open({library!r}), 0x80086601, bytes(8))",
    "times": "import os; os.utime({victim!r}, (0, 0))",
    "extended attribute": "import os; os.setxattr({victim!r}, 'user.x', b'')",
    "hard link": "import os; os.link({victim!r}, 'linked')",
    "shared with a file": "import mmap; opened = open({library!r}); mmap.mmap(opened.fileno(), 0)",
    "other user": "import os; os.setuid(65534)",
    "root again": "import os; os.setresuid(0, 0, 0)",
    "groups": "import os; os.setgroups([])",
    "session": "import os; os.setsid()",
    "group of the parent": "import os; os.setpgid(0, os.getppid())",
    "limits of the parent": "import resource, os; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "limits, asked of the parent": "import resource, os; resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "own group": "import os; os.killpg(os.getpgrp(), 9)",
    "everybody": "import os; os.kill(0, 9)",
    "descriptor of the parent": "import os; os.pidfd_open(os.getppid())",
    "sent to an address": "import socket; a, b = socket.socketpair(); a.sendto(b'', 'somewhere')",
    "sent with a message": "import socket; a, b = socket.socketpair(); a.sendmsg([b''])",
    "packets": "import socket; socket.socketpair(type=socket.SOCK_DGRAM)",
}
BY_NUMBER = {
    "input and output of the parent": "251, 1, os.getppid(), 3 << 13",  # ioprio_set
    "a thread of the parent": "234, os.getppid(), os.getppid(), 9",  # tgkill
    "memory of the parent": "310, os.getppid(), 0, 0, 0, 0, 0",  # process_vm_readv
    "queue": "241, b'/x'",  # mq_unlink
    "shared memory": "31, 0, 0, 0",  # shmctl
    "shared memory, attached": "30, 0, 0, 0",  # shmat
    "swap": "168, b'/x'",  # swapoff
    "module": "176, b'x', 0",  # delete_module
    "next kernel": "320, 0, 0, 0, 0, 0",  # kexec_file_load
    "clock": "305, 0, 0",  # clock_adjtime
    "new memory for itself": "319, b'x', 0",  # memfd_create
    "another filter": "317, 1, 0, 0",  # seccomp
    "stays after the parent": "157, 1, 0, 0, 0, 0",  # prctl(PR_SET_PDEATHSIG)
    "looked into again": "157, 4, 1, 0, 0, 0",  # prctl(PR_SET_DUMPABLE)
    "name space": "272, 0x10000000",  # unshare
    "process without a fork": "56, 0x4100, 0, 0, 0, 0",  # clone, VM and VFORK
    "thread in a name space": "56, 0x10000f00 | 0x20000, 0, 0, 0, 0",
    "watch": "253",  # inotify_init
}
"""System calls that Python has no function for, by their number on x86_64, and their arguments."""


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


ATTEMPTS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)

def call(*given):
    if libc.syscall(*given) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def let_through(attempts):
    found = []
    for name, statements in attempts:
        try:
            exec(statements, {"call": call, "os": os})
        except OSError as error:
            if error.errno in (1, 38):
                continue
            name += f" ({error})"
        found.append(name)
    return found
"""
TOLD = "found = let_through(ATTEMPTS)\nif found:\n    raise Exception(', '.join(found))"


def test_nothing_outside_is_reached(sandbox: Sandbox, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    before = (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0), os.sched_getscheduler(0), victim.stat())
    attempts = [
        (name, text.replace("{victim!r}", repr(str(victim))).replace("{library!r}", repr(json.__file__)))
        for name, text in OUTSIDE.items()
    ]
    assert sandbox.run(ATTEMPTS, TOLD, f"ATTEMPTS = {attempts}") == ProgramOutcome(True)
    after = (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0), os.sched_getscheduler(0), victim.stat())
    assert after == before
    assert os.listdir(tmp_path) == ["victim"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
def test_no_other_system_call_is_allowed(sandbox: Sandbox) -> None:
    attempts = [(name, f"call({call})") for name, call in BY_NUMBER.items()]
    assert sandbox.run(ATTEMPTS, TOLD, f"ATTEMPTS = {attempts}") == ProgramOutcome(True)


def test_what_is_let_through_would_be_told(sandbox: Sandbox) -> None:
    attempts = [("time", "import time; time.time()"), ("absent", "open('absent')")]
    outcome = sandbox.run(ATTEMPTS, TOLD, f"ATTEMPTS = {attempts}")
    assert outcome.reason.startswith("Exception: time, absent ([Errno 2]")


SECRETS = {
    "environment of the parent": "/proc/{parent}/environ",
    "memory of the parent": "/proc/{parent}/mem",
    "arguments of the parent": "/proc/{parent}/cmdline",
    "descriptors of the parent": "/proc/{parent}/fd/0",
    "a thread of the parent": "/proc/{parent}/task/{parent}/environ",
    "itself": "/proc/self/environ",
    "accounts": "/etc/passwd",
    "a file": "{secret}",
    "a way round": "/usr/lib/../../{secret}",
    "a link": "{link}",
}


@pytest.mark.skipif(not reads_are_closed(), reason="this kernel has no Landlock")
def test_nothing_but_the_installation_is_read(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "token").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "token")
    known = {"parent": os.getpid(), "secret": tmp_path / "token", "link": tmp_path / "link"}
    attempts = [(name, path.format(**known)) for name, path in SECRETS.items()]
    attempts += [(path, path) for path in ("/", "/proc", "/tmp", str(Path.home()), "/dev/mem", "/dev/tty", "/sys")]
    program = (
        "import os\ndef let_through(attempts):\n    found = []\n    for name, path in attempts:\n        try:\n"
        "            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))\n        except (PermissionError, "
        "FileNotFoundError):\n            continue\n        found.append(name)\n    return found"
    )
    assert sandbox.run(program, TOLD, f"ATTEMPTS = {attempts}") == ProgramOutcome(True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")
def test_root_has_no_powers_left() -> None:
    drop = "from dlm.evaluation.sandbox import rights; rights.drop_capabilities()"
    program = f"{drop}; print(open('/proc/self/status').read())"
    status = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    held = {line.split(":")[0]: int(line.split()[1], 16) for line in status.splitlines() if line.startswith("Cap")}
    assert (held["CapEff"], held["CapPrm"], held["CapInh"], held["CapAmb"]) == (0, 0, 0, 0)


WITHOUT_LANDLOCK = """
import ctypes, os, struct, sys
from dlm.evaluation.sandbox.run import ProgramOutcome, Sandbox, reads_are_closed

class Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))

rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000)]
text = b"".join(struct.pack("HBBI", *rule) for rule in rules)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(rules), text)), 0, 0) == 0
assert not reads_are_closed()
program = '''
import os
def judges():
    found = []
    for pid in range(os.getpid() - 50, os.getpid() + 50):
        try:
            if b"judge" in open(f"/proc/{pid}/cmdline", "rb").read().split(bytes(1)):
                found.append(pid)
        except OSError:
            pass
    return found
def looked_into(pids):
    found = []
    for pid in pids:
        for name in ("mem", "environ", "maps", "auxv", "fd/0"):
            try:
                os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
            except OSError:
                continue
            found.append(name)
    return found
'''
tests = "pids = judges(); found = looked_into(pids); assert pids and not found, found"
outcome = Sandbox(float(sys.argv[1])).run(program, tests)
assert outcome == ProgramOutcome(True), outcome
"""
"""A kernel without Landlock, as a filter makes this one look; then a program that knows where its judge is."""


def test_without_landlock_programs_run_and_the_judge_is_closed_to_them() -> None:
    arguments = [sys.executable, "-c", WITHOUT_LANDLOCK, str(TIMEOUT)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning: this kernel has no Landlock" in done.stderr


def test_a_system_that_cannot_confine_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tmp_path / "start.py"
    said = b'{"confined": false, "reason": "no seccomp"}\n'
    start.write_text(f"import os, sys\nsys.stdin.read()\nif 'judge' in sys.argv: os.write(int(sys.argv[-1]), {said})")
    monkeypatch.setattr("dlm.evaluation.sandbox.run.START", start)
    with pytest.raises(RunError, match=r"cannot be run here: no seccomp. Run them on Linux"):
        Sandbox(seconds=TIMEOUT).run("x = 1")


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
    assert not [name for name in names if b"confined" in name]


def test_a_folder_of_its_own_that_is_gone_afterwards(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert sandbox.run(f"import os; assert os.getcwd().startswith({str(tmp_path)!r})").passed
    assert not list(tmp_path.iterdir())
