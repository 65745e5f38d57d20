"""Starts and stops the servers of a comparison."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dlm.bench.load.target import LoadTarget
from dlm.distributed.processes import die_with_parent, free_port
from dlm.errors import ConfigError, RunError
from dlm.serving.fleet.processes import answers, check_free
from dlm.serving.settings import IDENTITY_VARIABLE

START_SECONDS = 300.0
STOP_SECONDS = 60.0


@contextmanager
def running(model: Sequence[str], servers: Mapping[str, Sequence[str]]) -> Iterator[list[LoadTarget]]:
    """Ready servers for the duration of the context; raises `RunError` if one does not start.

    Args:
        model: `python -m dlm.serve` arguments for all.
        servers: server name -> its own arguments.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dlm-bench-")))
        started = [
            stack.enter_context(_server(name, [*model, *own], folder / str(index)))
            for index, (name, own) in enumerate(servers.items())
        ]
        yield [LoadTarget.at(_when_ready(*one), name) for one, name in zip(started, servers, strict=True)]


@contextmanager
def _server(name: str, arguments: Sequence[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """A starting server, its URL and its log."""
    folder.mkdir()
    port, log = free_port(), folder / "log"
    places = [f"port={port}", f"run_dir={folder}"]
    workers = next((int(one.removeprefix("devices=")) for one in arguments if one.startswith("devices=")), 1)
    if workers > 1:
        places.append(f"worker_base_port={free_ports(workers)}")
    print(f"{name}: python -m dlm.serve {' '.join([*arguments, *places])}", file=sys.stderr, flush=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dlm.serve", *arguments, *places],
            env={key: value for key, value in os.environ.items() if key != IDENTITY_VARIABLE},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    with process:
        try:
            yield process, f"http://127.0.0.1:{port}", log
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _when_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> str:
    """Wait until a server is ready; returns its URL."""
    until = time.monotonic() + START_SECONDS
    while not answers(f"{url}/ready"):
        if process.poll() is not None or time.monotonic() > until:
            what = "did not become ready" if process.returncode is None else f"exited with code {process.returncode}"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
            raise RunError(f"the server at {url} {what}; its log ends:\n{tail}")
        time.sleep(0.2)
    return url


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    while True:
        first = free_port()
        try:
            for port in range(first + 1, first + count):
                check_free("127.0.0.1", port)
        except ConfigError:
            continue
        return first
