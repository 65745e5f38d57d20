"""Landlock restricts which files a process may open. Here, the listed ones can be read and no other can be touched.

It needs no privileges, only Linux 5.13 or later with `landlock` among the enabled security modules. It also closes
other processes' entries under `/proc`.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

CREATE, ADD, RESTRICT = 444, 445, 446
"""Numbers of the three system calls, the same on all machines."""
ASK_VERSION, PATH_BENEATH = 1, 1
ALL_OF_FIRST_VERSION = (1 << 13) - 1
"""Every kind of file access that Landlock's first version can restrict; later versions know them all."""
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3


def available() -> bool:
    """Whether this process can use Landlock."""
    return sys.platform == "linux" and _call(CREATE, None, 0, ASK_VERSION) > 0


def read_only(paths: Iterable[str]) -> None:
    """From now on this process can open only these files and folders (with their contents), and only for reading.

    Missing paths are skipped. The process must have set `no_new_privs`. Raises `OSError`.
    """
    handled = struct.pack("=Q", ALL_OF_FIRST_VERSION)  # struct landlock_ruleset_attr
    ruleset = _checked(CREATE, handled, len(handled), 0)
    for path in paths:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        access = READ_FILE | READ_FOLDER if os.path.isdir(path) else READ_FILE
        _checked(ADD, ruleset, PATH_BENEATH, struct.pack("=Qi", access, opened), 0)  # landlock_path_beneath_attr
        os.close(opened)
    _checked(RESTRICT, ruleset, 0)
    os.close(ruleset)


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return int(libc.syscall(ctypes.c_long(number), *words))


def _checked(number: int, *arguments: int | bytes | None) -> int:
    answer = _call(number, *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"Landlock's system call {number}: {os.strerror(ctypes.get_errno())}")
    return answer
