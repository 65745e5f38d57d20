"""What a fleet needs of the operating system: sockets, GPUs, open files, and whether something answers."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from dlm.errors import ConfigError

BACKLOG = 2048


def count_gpus() -> int:
    """GPUs of this machine, without opening one."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises `ConfigError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol unnamed asyncio leaves Nagle's algorithm on, and every answer of two writes waits 40 ms for an
    # acknowledgement that the client delays.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise ConfigError(f"host={host} port={port}: {error.strerror}; choose another port") from error
    return found


def check_free(host: str, port: int) -> None:
    """Raise `ConfigError` when something listens there already."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"host={host} port={port}: {error.strerror}; choose another port or worker_base_port"
            ) from error


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200 within a second."""
    try:
        return httpx.get(url, timeout=1.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def end_of(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


@contextmanager
def many_files() -> Iterator[None]:
    """As many open files as this process may have: a connection takes one, and thousands may idle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
