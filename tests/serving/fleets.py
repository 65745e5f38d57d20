"""Running fleets, and what they say of themselves."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

import httpx

from tests.running import TIMEOUT, processes_of


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    while True:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            first: int = found.getsockname()[1]
        taken = []
        try:
            for port in range(first, first + count):
                taken.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        else:
            return first
        finally:
            for one in taken:
                one.close()


class Fleet:
    """A running fleet.

    Attributes:
        client: knows its URL and its key.
    """

    def __init__(self, process: subprocess.Popen[str], port: int, folder: Path, key: str = "") -> None:
        self.process, self.url, self.folder = process, f"http://127.0.0.1:{port}", folder
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def info(self) -> dict[str, Any]:
        path = self.folder / "server.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def worker(self, index: int) -> int:
        """Process id of a worker."""
        port = int(self.info()["workers"][index].rpartition(":")[2])
        for pid in processes_of(self.folder):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if f"port={port}".encode() in arguments:
                return pid
        raise AssertionError(f"no worker {index}")

    def healthy(self) -> int:
        answer = self.client.get("/stats")
        count: int = answer.json()["healthy_workers"] if answer.status_code == 200 else 0
        return count
