"""Gives up a process's rights, for good.

Afterwards it can read the Python installation and its own folder, compute, and talk over the descriptors it has. It
can start, signal or inspect no process, change no priority but by computing, take no lock, open no socket, and change
no file or file system. As root it keeps no capability.

Linux on x86_64 and aarch64. Where the kernel has no Landlock the process can still read what its user can.
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

from dlm.evaluation.confined import landlock
from dlm.evaluation.confined.syscalls import ARCHITECTURES, rules

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
"""What Python and its libraries read, besides the installation: shared libraries, time zones, the number of cores."""


class _Program(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


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


def confine() -> None:
    """Give up all rights but to compute and to read.

    Raises:
        OSError, RuntimeError: the system does not take them, or not all of them.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        raise RuntimeError(f"no seccomp filter is known for {sys.platform} on {machine}")
    drop_capabilities()
    _prctl(PR_SET_DUMPABLE, 0)  # no process of this user looks into it, the other one of the pair neither
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the evaluation may be killed while this one sleeps
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    closed = landlock.available()
    if closed:
        landlock.read_only([*installation(), *shared_libraries(), *SYSTEM, os.getcwd()])
    program = b"".join(struct.pack("HBBI", *rule) for rule in rules(machine, os.getpid()))
    _prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(_Program(len(program) // 8, program)))
    _probe(closed)


def installation() -> list[str]:
    """The folders of this Python: its standard library, its packages, and the shared libraries beside them."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*paths, *site.getsitepackages(), *(os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix))]


def shared_libraries() -> list[str]:
    """The libraries in the folders of `LD_LIBRARY_PATH`, one by one: nothing else in there is to be read."""
    found = []
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        try:
            with os.scandir(folder) as entries:
                found += [entry.path for entry in entries if ".so" in entry.name and entry.is_file()]
        except OSError:
            continue
    return found


def drop_capabilities() -> None:
    """Root without its powers: it owns root's files, and may do no more than any user."""
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")


def _prctl(option: int, *arguments: object) -> None:
    padded = [*arguments, 0, 0, 0, 0][:4]
    words = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in padded]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *words):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _probe(closed: bool) -> None:
    """Try what must fail, and what must not. Raises `RuntimeError`."""
    refused = {"a process": _fork, "a socket": _socket, "a file": _write}
    if closed:
        refused["the file system"] = _list_root
    for name, attempt in refused.items():
        try:
            attempt()
        except PermissionError:
            continue
        raise RuntimeError(f"{name} is let through")
    try:
        with open(os.__file__, "rb"):
            pass
    except OSError as error:
        raise RuntimeError(
            f"the Python installation cannot be read without privileges ({error}); run as the user who owns it"
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
