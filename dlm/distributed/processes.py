"""Processes of this machine: whether one still runs, how one ends with its parent, and ports for them."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

POLL = 1.0
"""Seconds between two looks at a parent."""
ORPHANED = 3
"""Exit code of a process whose parent died."""


def die_with(parent: int) -> None:
    """End this process, whatever it is doing, within about a second of its parent's end."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def die_with_parent() -> None:
    """In a new process on Linux: SIGTERM when the parent ends, however it ends (prctl 1, PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def send(process: subprocess.Popen[bytes], signum: int) -> None:
    """A signal to a process, unless it has ended."""
    if process.poll() is None:
        process.send_signal(signum)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def process_birth(pid: int) -> str:
    """Tells one process from a later one with the same id; empty where there is none.

    On Linux the clock tick at which it began: unlike a time of day, every process that asks sees the same.
    """
    if Path("/proc/self/stat").exists():
        return _stat(pid)[19] if _stat(pid) else ""
    return _ps("lstart", pid)


def is_alive(pid: int, birth: str) -> bool:
    """Whether the process born at `birth` still runs; one that has ended but was not waited for does not."""
    if process_birth(pid) != birth or not birth:
        return False
    if Path("/proc/self/stat").exists():
        stat = _stat(pid)
        return bool(stat) and stat[0] not in "ZX"
    return not _ps("stat", pid).startswith("Z")


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the state on; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _ps(field: str, pid: int) -> str:
    shown = subprocess.run(["ps", "-o", f"{field}=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def machine() -> str:
    """Names the machine, its boot and the container's process space: process ids compare only inside one."""
    parts = [platform.node()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(source)
        if path.is_symlink():
            parts.append(os.readlink(path))
        elif path.is_file():
            parts.append(path.read_text().strip())
    return "/".join(parts)
