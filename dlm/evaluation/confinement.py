"""The child's side of the sandbox: takes a program on standard input, gives up its own rights, and runs it.

A script of the standard library alone, started by `dlm.evaluation.sandbox`. A seccomp filter, which nothing takes off
again, leaves no way to start or signal a process, to open a socket, to change a file system or to open a file for
writing; limits bound time and memory. Linux on x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any

EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, ABOVE, BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
"""Offsets in the kernel's `struct seccomp_data`."""
CLONE_THREAD = 0x00010000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 1, 38, 22, 2

HANDLED = ("clone", "clone3", "open", "openat", "openat2")
"""Calls that are looked at more closely; all others in the tables below answer EPERM."""
X86_64 = {
    "open": 2, "socket": 41, "shmget": 29, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "semget": 64,
    "msgget": 68, "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86,
    "unlink": 87, "symlink": 88, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101,
    "rt_sigqueueinfo": 129, "utime": 132, "mknod": 133, "pivot_root": 155, "adjtimex": 159, "setrlimit": 160,
    "chroot": 161, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "sethostname": 170,
    "setdomainname": 171, "iopl": 172, "ioperm": 173, "init_module": 175, "setxattr": 188, "lsetxattr": 189,
    "fsetxattr": 190, "removexattr": 197, "tkill": 200, "io_setup": 206, "clock_settime": 227, "tgkill": 234,
    "utimes": 235, "mq_open": 240, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "openat": 257,
    "mkdirat": 258, "mknodat": 259, "fchownat": 260, "futimesat": 261, "unlinkat": 263, "renameat": 264, "linkat": 265,
    "symlinkat": 266, "fchmodat": 268, "unshare": 272, "utimensat": 280, "rt_tgsigqueueinfo": 297,
    "perf_event_open": 298, "prlimit64": 302, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "finit_module": 313, "renameat2": 316, "memfd_create": 319, "bpf": 321, "execveat": 322,
    "userfaultfd": 323,
}  # fmt: skip
AARCH64 = {
    "io_setup": 0, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "mknodat": 33, "mkdirat": 34,
    "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38, "umount2": 39, "mount": 40, "pivot_root": 41,
    "truncate": 45, "ftruncate": 46, "chroot": 51, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55,
    "openat": 56, "utimensat": 88, "unshare": 97, "kexec_load": 104, "init_module": 105, "clock_settime": 112,
    "ptrace": 117, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "reboot": 142, "sethostname": 161,
    "setdomainname": 162, "setrlimit": 164, "settimeofday": 170, "adjtimex": 171, "mq_open": 180, "msgget": 186,
    "semget": 190, "shmget": 194, "socket": 198, "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220,
    "execve": 221, "swapon": 224, "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "prlimit64": 261,
    "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "finit_module": 273,
    "renameat2": 276, "memfd_create": 279, "bpf": 280, "execveat": 281, "userfaultfd": 282,
}  # fmt: skip
COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "clone3": 435,
    "openat2": 437, "pidfd_getfd": 438, "mount_setattr": 442, "fchmodat2": 452,
}  # fmt: skip
MACHINES = {"x86_64": (0xC000003E, X86_64 | COMMON), "aarch64": (0xC00000B7, AARCH64 | COMMON)}
"""For each machine the kernel's name of its architecture, and the numbers of the calls."""


class Fprog(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def rules(machine: str) -> Iterator[tuple[int, int, int, int]]:
    """The filter as classic BPF: `(code, jump if true, jump if false, operand)`."""
    arch, calls = MACHINES[machine]
    yield LOAD, 0, 0, ARCH
    yield EQUAL, 1, 0, arch
    yield RETURN, 0, 0, KILL
    yield LOAD, 0, 0, NUMBER
    if machine == "x86_64":  # the other table of calls that this kernel has
        yield ABOVE, 0, 1, 0x40000000
        yield RETURN, 0, 0, ERRNO | EPERM
    for name in (
        "clone3",
        "openat2",
    ):  # their flags are out of a filter's sight; older ones are tried next
        yield EQUAL, 0, 1, calls[name]
        yield RETURN, 0, 0, ERRNO | ENOSYS
    for name, number in calls.items():
        if name not in HANDLED:
            yield EQUAL, 0, 1, number
            yield RETURN, 0, 0, ERRNO | EPERM
    yield EQUAL, 0, 4, calls["clone"]  # threads may be made, processes not
    yield LOAD, 0, 0, ARGUMENTS
    yield BITS, 1, 0, CLONE_THREAD
    yield RETURN, 0, 0, ERRNO | EPERM
    yield RETURN, 0, 0, ALLOW
    for name, place in (("open", 1), ("openat", 2)):
        if name in calls:
            yield EQUAL, 0, 4, calls[name]
            yield LOAD, 0, 0, ARGUMENTS + 8 * place
            yield BITS, 0, 1, WRITES
            yield RETURN, 0, 0, ERRNO | EPERM
            yield RETURN, 0, 0, ALLOW
    yield RETURN, 0, 0, ALLOW


def confine() -> None:
    """Take this process's rights. Raises `OSError` or `RuntimeError` where the system does not, or not all of them."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        raise RuntimeError(f"no seccomp filter is known for {sys.platform} on {machine}")
    program = b"".join(struct.pack("HBBI", *rule) for rule in rules(machine))
    libc = ctypes.CDLL(None, use_errno=True)
    filter = ctypes.byref(Fprog(len(program) // 8, program))
    for arguments in (
        (PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # the evaluation may be killed while this one sleeps
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, FILTER, filter, 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), f"prctl({arguments[0]})")
    import socket

    for name, attempt in (("a process", _fork), ("a socket", socket.socket), ("a file", _write)):
        try:
            attempt()
        except PermissionError:
            continue
        raise RuntimeError(f"the seccomp filter lets {name} through")


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _write() -> None:
    os.close(os.open("written", os.O_WRONLY | os.O_CREAT))


def limit(seconds: int, memory_mib: int) -> None:
    """Bound processor time, address space, open files, and the size of any file."""
    for name, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_mib * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(name, (most, most))


def main() -> None:
    """Run what standard input asks for; what happened goes to the descriptor that it names, as one JSON object."""
    asked: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    verdict: dict[str, Any] = {"mark": asked["mark"], "state": "error", "reason": ""}
    try:
        limit(*asked["limits"])
        confine()
    except (OSError, RuntimeError, ValueError) as error:
        verdict |= {"state": "unconfined", "reason": str(error)}
    else:
        try:
            exec(compile(asked["program"], "answer.py", "exec"), {"__name__": "answer"})
            verdict["state"] = "passed"
        except BaseException as error:
            verdict["reason"] = f"{type(error).__name__}: {error}"[:300]
    os.write(asked["descriptor"], json.dumps(verdict).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
