"""The filter of system calls, run by an interpreter of its instructions: what it lets through on either machine."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.evaluation.sandbox.syscalls import ALLOW, ARCHITECTURES, FREE, PARTLY, Instruction, rules

PID = 4711
DENIED, UNKNOWN, KILLED = 0x00050001, 0x00050026, 0x80000000


def decide(program: list[Instruction], arch: int, number: int, arguments: list[int]) -> int:
    """What the kernel would answer to a call."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *arguments)
    held, place = 0, 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        if code == 0x20:
            held = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            held &= operand
        elif code == 0x06:
            return operand
        else:
            met = {0x15: held == operand, 0x25: held > operand, 0x45: bool(held & operand)}[code]
            place += if_true if met else if_false


def answer(machine: str, number: int, *arguments: int) -> int:
    padded = [*arguments, *[0] * 6][:6]
    return decide(list(rules(machine, PID)), ARCHITECTURES[machine], number, [one % 2**64 for one in padded])


def call(machine: str, name: str, *arguments: int) -> int:
    number = (FREE | PARTLY)[name][list(ARCHITECTURES).index(machine)]
    assert number is not None
    return answer(machine, number, *arguments)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_is_not_listed_is_refused(machine: str) -> None:
    place = list(ARCHITECTURES).index(machine)
    free = {numbers[place] for numbers in FREE.values()}
    listed = free | {numbers[place] for numbers in PARTLY.values()}
    for number in range(600):
        for word in (0, 1, 2**31, 2**32 - 1):
            found = answer(machine, number, *[word] * 6)
            assert found in ((ALLOW,) if number in free else (ALLOW, DENIED) if number in listed else (DENIED, UNKNOWN))
    assert len(list(rules(machine, PID))) < 4096


@pytest.mark.parametrize("machine", ARCHITECTURES)
@given(st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1))
def test_other_architectures_are_killed_and_other_tables_refused(machine: str, number: int, arch: int) -> None:
    if arch != ARCHITECTURES[machine]:
        assert decide(list(rules(machine, PID)), arch, number, [0] * 6) == KILLED
    assert answer(machine, -1 - number) == UNKNOWN
    assert answer(machine, 0x40000000 | number % 500) == UNKNOWN  # x32


ALLOWED = [
    ("openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW),
    ("clone", 0x003D0F00),
    ("clone", 0x007D0F00),
    ("mmap", 0, 4096, 3, 0x22),  # private memory
    ("mmap", 0, 4096, 3, 0x21),  # memory that is shared with nobody
    ("mmap", 0, 4096, 5, 0x02, 3),  # code of a library
    ("mmap", 0, 4096, 1, 0x01, 3),  # a file, to read
    ("mmap", 0, 4096, 3, 0x02, 3),  # a copy of a file
    ("fcntl", 3, 1030),
    ("ioctl", 3, 0x5401),
    ("ioctl", 3, 0x5421),
    ("prctl", 15),
    ("kill", PID, 9),
    ("tgkill", PID, PID + 1, 6),
    ("prlimit64", 0, 7, 0, 0x7F0000000000),
    ("socketpair", 1, 1 | 0o2000000 | 0o4000),
    ("sendto", 3, 0x7F0000000000, 1),
]
REFUSED = [
    *(("openat", 0, 0, flag) for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND | os.O_WRONLY)),
    ("openat", 0, 0, 3),
    ("openat", 0, 0, os.O_TMPFILE | os.O_RDWR),
    *(("clone", flags) for flags in (0, 17, 0x4111, 0x00010000 | 0x10000000, 0x003D0F00 | 0x20000, 0x003D0F00 | 17)),
    *(("mmap", 0, 4096, protection, flags, 3) for protection in (2, 3, 7) for flags in (0x01, 0x03)),
    *(("fcntl", 3, command) for command in (5, 6, 7, 8, 10, 36, 37, 38, 1024, 1026, 1031, 1033)),
    *(("ioctl", 3, command) for command in (0x40086602, 0x80086601, 0x5412, 0x4B47, 0x541C, 0x40049409, 0x5452)),
    *(("prctl", option) for option in (1, 3, 4, 8, 22, 23, 24, 27, 28, 38, 0x59616D61)),
    *((name, pid, 9) for name in ("kill", "tgkill") for pid in (0, 1, -1, -PID, PID + 1, PID - 1)),
    ("prlimit64", PID + 1, 7, 0, 0),
    ("prlimit64", 0, 7, 0x7F0000000000, 0),
    ("prlimit64", 0, 7, 1, 0),
    *(("socketpair", *kind) for kind in ((2, 1), (1, 2), (1, 5), (16, 3), (10, 1))),
    ("sendto", 3, 0, 1, 0, 0x7F0000000000, 110),
    ("sendto", 3, 0, 1, 0, 0x10, 110),
]


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_some_calls_are_allowed_in_part(machine: str) -> None:
    assert [case for case in ALLOWED if call(machine, *case) != ALLOW] == []
    assert [case for case in REFUSED if call(machine, *case) != DENIED] == []


def test_open_as_openat_on_the_machine_that_has_it() -> None:
    assert call("x86_64", "open", 0, os.O_RDONLY) == ALLOW
    assert call("x86_64", "open", 0, os.O_RDWR) == DENIED


@pytest.mark.parametrize("number", [435, 437, 462, 500])
def test_newer_calls_are_not_there_so_that_older_ones_are_tried(number: int) -> None:
    for machine in ARCHITECTURES:
        assert answer(machine, number) == UNKNOWN


def test_every_instruction_jumps_within_the_filter() -> None:
    for machine in ARCHITECTURES:
        program = list(rules(machine, PID))
        for place, (code, if_true, if_false, _) in enumerate(program):
            assert 0 <= if_true < 256
            assert 0 <= if_false < 256
            if code in (0x15, 0x25, 0x45):
                assert place + 1 + max(if_true, if_false) < len(program)
