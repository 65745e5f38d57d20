"""Gives up this process's rights, irrevocably.

Afterwards it can compute, read the Python installation and its working folder, and use the descriptors it already has.
It cannot start, signal or inspect processes, change priorities, take locks, open sockets, or change files. Run as root,
it has no capabilities left.

Linux on x86_64 and aarch64. Without Landlock in the kernel, the process can still read whatever its user can.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import site
import struct
import sys
import sysconfig

from dlm.evaluation.sandbox import landlock
from dlm.evaluation.sandbox.syscalls import ARCHITECTURES, rules

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
FILTER = 2
CAPABILITY_VERSION = 0x20080522

SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
    "/dev/random",
)
"""What Python and its libraries read outside the installation: shared libraries, time zones, the number of cores."""


class _Program(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def limit(seconds: int, memory_mib: int) -> None:
    """Limit processor time, address space, open files, and file sizes."""
    for name, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_mib * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(name, (most, most))


def confine() -> None:
    """Give up all rights except computing and reading what is listed here.

    Raises:
        OSError, RuntimeError: a restriction could not be put in place, or did not take effect.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        raise RuntimeError(f"there is no seccomp filter for {sys.platform} on {machine}")
    drop_capabilities()
    _prctl(PR_SET_DUMPABLE, 0)  # not even a process of the same user can inspect it
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the evaluation may be killed while this one sleeps
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    closed = landlock.available()
    if closed:
        landlock.read_only([*installation(), *shared_libraries(), *SYSTEM, os.getcwd()])
    program = b"".join(struct.pack("HBBI", *rule) for rule in rules(machine, os.getpid()))
    _prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(_Program(len(program) // 8, program)))
    _probe(closed)


def installation() -> list[str]:
    """The folders of this Python installation: standard library, packages, and shared libraries next to them."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*paths, *site.getsitepackages(), *(os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix))]


def shared_libraries() -> list[str]:
    """The libraries in the folders of `LD_LIBRARY_PATH`, file by file: the folders may hold other things too."""
    found = []
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        try:
            with os.scandir(folder) as entries:
                found += [entry.path for entry in entries if ".so" in entry.name and entry.is_file()]
        except OSError:
            continue
    return found


def drop_capabilities() -> None:
    """Give up root's privileges. Files that root owns stay accessible."""
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")


def _prctl(option: int, *arguments: object) -> None:
    padded = [*arguments, 0, 0, 0, 0][:4]
    words = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in padded]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *words):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _probe(closed: bool) -> None:
    """Check that what must fail fails, and that Python still works. Raises `RuntimeError`."""
    refused = {"fork": _fork, "a socket": _socket, "a file for writing": _write}
    if closed:
        refused["a folder outside"] = _list_root
    for name, attempt in refused.items():
        try:
            attempt()
        except PermissionError:
            continue
        raise RuntimeError(f"the restrictions did not take effect: {name} could be used")
    try:
        with open(os.__file__, "rb"):
            pass
    except OSError as error:
        raise RuntimeError(
            f"the Python installation is readable only with root's privileges ({error}); run as the user who owns it"
        ) from error


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _socket() -> None:
    if ctypes.CDLL(None, use_errno=True).socket(1, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "socket")


def _write() -> None:
    os.close(os.open("written", os.O_WRONLY | os.O_CREAT))


def _list_root() -> None:
    os.listdir("/")
