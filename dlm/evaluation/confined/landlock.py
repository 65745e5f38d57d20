"""Landlock, the kernel's rules for which files a process may open: here some may be read, and no other touched.

It needs no privileges and Linux 5.13 or later, with `landlock` among the kernel's security modules. It also closes the
entries of other processes under `/proc`.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

CREATE, ADD, RESTRICT = 444, 445, 446
"""Numbers of the three system calls, on all machines alike."""
ASK_VERSION, PATH_BENEATH = 1, 1
ALL_OF_FIRST_VERSION = (1 << 13) - 1
"""Every way to touch a file or folder that the first version knows; all versions know these."""
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3


def available() -> bool:
    """Whether this kernel has Landlock, and lets this process use it."""
    return sys.platform == "linux" and _call(CREATE, None, 0, ASK_VERSION) > 0


def read_only(paths: Iterable[str]) -> None:
    """Leave this process these files, and what lies in these folders, to read. No other can be opened from then on.

    Paths that are not there are passed over. The process must have set `no_new_privs`. Raises `OSError`.
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
