"""A real server in a process of its own."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.running import TIMEOUT, python, started, wait_until


@dataclass
class Server:
    """A server and what it has said.

    Attributes:
        process: it.
        url: where it listens.
        lines: of its log.
    """

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Collect its log until it ends."""
        for line in self.process.stderr or ():
            self.lines.append(line)
            found = re.search(r"ready url=(\S+)", line)
            if found:
                self.url = found[1]


@contextmanager
def serving(cwd: Path, *overrides: str, module: str = "dlm.serve", **extra: str) -> Iterator[Server]:
    """`python -m dlm.serve`, or another such module, on a free port, ready."""
    with started(python(module, "port=0", *overrides), cwd, **extra) as process:
        server = Server(process)
        reader = threading.Thread(target=server.read, daemon=True)
        reader.start()
        wait_until(lambda: bool(server.url) or process.poll() is not None, "the server was ready")
        assert server.url, "".join(server.lines)
        yield server
        process.terminate()
        process.wait(TIMEOUT)
        reader.join(TIMEOUT)
