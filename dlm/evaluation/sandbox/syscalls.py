"""The system calls a confined process may make, as a seccomp allow-list for x86_64 and aarch64.

Calls in neither table fail with EPERM. Numbers above every listed one fail with ENOSYS, so that a C library newer than
this file falls back to older calls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, AND, EQUAL, ABOVE, BITS, RETURN = 0x20, 0x54, 0x15, 0x25, 0x45, 0x06
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
"""Offsets in the kernel's `struct seccomp_data`."""

Instruction = tuple[int, int, int, int]
"""Classic BPF: code, jump if true, jump if false, operand."""

DENY: Instruction = (RETURN, 0, 0, ERRNO | EPERM)
PASS: Instruction = (RETURN, 0, 0, ALLOW)

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH of each machine, in the order of the numbers below."""

FREE: dict[str, tuple[int | None, int | None]] = {
    # descriptors that are already open
    "read": (0, 63), "write": (1, 64), "futex": (202, 98), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67),
    "readv": (19, 65), "writev": (20, 66), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "pipe": (22, None), "pipe2": (293, 59), "close_range": (436, 436),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    # asyncio wakes itself through a socket pair
    "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204), "getsockopt": (55, 209),
    # file metadata; Landlock decides which files can be opened
    "fstat": (5, 80), "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49),
    # its own memory and threads
    "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233), "msync": (26, 227),
    "brk": (12, 214), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "arch_prctl": (158, None), "exit": (60, 93), "exit_group": (231, 94), "sched_yield": (24, 124),
    # signals and timers of its own
    "restart_syscall": (219, 128), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    "pause": (34, None), "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102),
    # time, randomness, identity and machine
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "getrandom": (318, 278), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, None), "getrlimit": (97, 163),
    "sched_getaffinity": (204, 123), "uname": (63, 160), "sysinfo": (99, 179), "getcpu": (309, 168),
}  # fmt: skip
"""Allowed with any arguments: number on x86_64 and on aarch64, None where the machine has no such call."""

PARTLY: dict[str, tuple[int | None, int | None]] = {
    "mmap": (9, 222), "clone": (56, 220), "open": (2, None), "openat": (257, 56), "fcntl": (72, 25),
    "ioctl": (16, 29), "prctl": (157, 167), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261),
    "socketpair": (53, 199), "sendto": (44, 206),
}  # fmt: skip
"""Allowed with some arguments only: see `checks`."""

RETRIED = (435, 437)
"""clone3 and openat2: a filter cannot read their flags, which are in memory. C libraries fall back to older calls."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLONE_THREAD, THREAD_FLAGS = 0x00010000, 0x017D0F00
"""The flag that makes a thread, and all flags glibc and musl use for one; no namespaces among them."""
PROT_WRITE, MAP_SHARED, MAP_ANONYMOUS = 0x2, 0x1, 0x20
COPIES_AND_FLAGS = (0, 1, 2, 3, 4, 1030)
"""fcntl: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC. No locks, leases, owners or signals."""
QUESTIONS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""ioctl: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. They act on the descriptor, not on the file."""
NAMES = (15, 16)
"""prctl: PR_SET_NAME and PR_GET_NAME, for thread names."""
AF_UNIX, SOCK_STREAM, SOCKET_KIND = 1, 1, 0xF


def one_of(place: int, values: Sequence[int]) -> list[Instruction]:
    """Continue if the low 32 bits of the argument at `place` are one of `values`."""
    return [_argument(place), *((EQUAL, len(values) - n, 0, value) for n, value in enumerate(values)), DENY]


def without(place: int, bits: int) -> list[Instruction]:
    """Continue if the argument has none of `bits` set."""
    return [_argument(place), (BITS, 0, 1, bits), DENY]


def null(place: int) -> list[Instruction]:
    """Continue if all 64 bits of the argument are 0."""
    return [_argument(place), (EQUAL, 1, 0, 0), DENY, _argument(place, 4), (EQUAL, 1, 0, 0), DENY]


def checks(own_pid: int) -> dict[str, list[Instruction]]:
    """The checks on the arguments of each call in `PARTLY`."""
    return {
        "open": without(1, WRITES),
        "openat": without(2, WRITES),
        "clone": [_argument(0), (BITS, 1, 0, CLONE_THREAD), DENY, *without(0, 0xFFFFFFFF ^ THREAD_FLAGS)],
        "mmap": [  # no writable mapping shared with a file
            _argument(2),
            (BITS, 0, 4, PROT_WRITE),
            _argument(3),
            (BITS, 2, 0, MAP_ANONYMOUS),
            (BITS, 0, 1, MAP_SHARED),
            DENY,
        ],
        "fcntl": one_of(1, COPIES_AND_FLAGS),
        "ioctl": one_of(1, QUESTIONS),
        "prctl": one_of(0, NAMES),
        "kill": one_of(0, (own_pid,)),
        "tgkill": one_of(0, (own_pid,)),
        "prlimit64": one_of(0, (0,)) + null(2),  # reading its own limits
        "socketpair": [
            *one_of(0, (AF_UNIX,)),
            _argument(1),
            (AND, 0, 0, SOCKET_KIND),
            (EQUAL, 1, 0, SOCK_STREAM),
            DENY,
        ],
        "sendto": null(4),  # no address: to the connected end only
    }


def rules(machine: str, own_pid: int) -> Iterator[Instruction]:
    """The filter for a machine in `ARCHITECTURES`. `own_pid` is the only process that may be signalled."""
    which = list(ARCHITECTURES).index(machine)
    yield LOAD, 0, 0, ARCH
    yield EQUAL, 1, 0, ARCHITECTURES[machine]
    yield RETURN, 0, 0, KILL
    yield LOAD, 0, 0, NUMBER
    for numbers in FREE.values():
        number = numbers[which]
        if number is not None:
            yield EQUAL, 0, 1, number
            yield PASS
    for name, check in checks(own_pid).items():
        number = PARTLY[name][which]
        if number is not None:
            yield EQUAL, 0, len(check) + 1, number
            yield from check
            yield PASS
    for number in RETRIED:
        yield EQUAL, 0, 1, number
        yield RETURN, 0, 0, ERRNO | ENOSYS
    known = [numbers[which] or 0 for numbers in (FREE | PARTLY).values()]
    yield ABOVE, 0, 1, max(known)
    yield RETURN, 0, 0, ERRNO | ENOSYS
    yield DENY


def _argument(place: int, offset: int = 0) -> Instruction:
    """Load the low half of an argument, or the high half with `offset=4` (both machines are little-endian)."""
    return LOAD, 0, 0, ARGUMENTS + 8 * place + offset
