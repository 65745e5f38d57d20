"""What the router costs and what a second worker brings, with workers that sleep instead of computing:

    python -m tests.router_overhead [rounds=3] [requests=64]

The same requests go by turns to one worker, to the same worker behind a router, and to two workers behind a router.
A forward takes 50 ms whatever it holds, so that two workers can answer twice as many requests on any machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, Popen

from dlm.bench.load.config import LoadConfig
from dlm.bench.load.figures import LoadFigures
from dlm.bench.load.report import render
from dlm.bench.load.run import measure
from dlm.bench.load.target import LoadTarget
from dlm.serving.fleet.processes import answers
from dlm.serving.settings import IDENTITY_VARIABLE, Identity
from tests.running import environment, python, wait_until
from tests.serving.fleets import free_ports
from tests.serving.sleeping_worker import FORWARD

CLIENTS = (1, 8, 32)
STEPS = 8
WORK = LoadConfig(
    concurrency=list(CLIENTS),
    seconds=8.0,
    max_tokens=[32],
    algorithms=["dual_cache"],
    fields={"steps": STEPS, "block_length": 32},
)
MODEL = ("model=random", "model.size=tiny", "model.chat=true", "batch_size=8")


@contextmanager
def started(folder: Path, name: str, command: Sequence[str], **extra: str) -> Iterator[None]:
    """A process with a log in `folder`, stopped at the end."""
    with (folder / f"{name}.log").open("wb") as log:
        process = Popen(command, cwd=Path.cwd(), env=environment(**extra), stdin=DEVNULL, stdout=log, stderr=log)
    with process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def targets(folder: Path) -> Iterator[list[LoadTarget]]:
    """One worker, it behind a router, and two others behind a router."""
    port = free_ports(5)
    urls = [f"http://127.0.0.1:{port + index}" for index in range(5)]
    fleets = {urls[3]: urls[:1], urls[4]: urls[1:3]}
    with ExitStack() as stack:
        for router, workers in fleets.items():
            for index, url in enumerate(workers):
                one = Identity(index, len(workers), tuple(workers), 0, os.getpid())
                command = python("tests.serving.sleeping_worker", *MODEL, f"port={url.rpartition(':')[2]}")
                name = url.rpartition(":")[2]
                stack.enter_context(started(folder, name, command, **{IDENTITY_VARIABLE: one.text()}))
            name = router.rpartition(":")[2]
            listed = f"worker_urls=[{','.join(workers)}]"
            command = python("dlm.serve", "router=only", listed, f"port={name}", f"run_dir={folder / name}")
            stack.enter_context(started(folder, name, command))
        for url in urls:
            wait_until(partial(answers, f"{url}/ready"), f"{url} was ready")
        names = {urls[0]: "1 worker", urls[3]: "router, 1 worker", urls[4]: "router, 2 workers"}
        yield [LoadTarget.at(url, name) for url, name in names.items()]


def summary(rows: Sequence[LoadFigures]) -> list[str]:
    """The two answers."""
    found = {(row.load.clients, row.server): row for row in rows}
    lines = []
    for clients in CLIENTS:
        alone, one, two = (found[clients, name] for name in ("1 worker", "router, 1 worker", "router, 2 workers"))
        more, rate = one.latency["p50"] - alone.latency["p50"], alone.requests_per_second
        lines.append(
            f"{clients} client(s): the router changes the median of {1e3 * alone.latency['p50']:.0f} ms by "
            f"{1e3 * more:+.1f} ms; requests/s: {one.requests_per_second / rate:.2f} times those without it, "
            f"with two workers {two.requests_per_second / rate:.2f} times"
        )
    return lines


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 1 when a request failed."""
    values = {"rounds": 3, "requests": 64}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in values:
            raise SystemExit(f"{argument!r}: known here: {', '.join(f'{name}=' for name in values)}")
        values[key] = int(value)
    work = LoadConfig(**{**vars(WORK), **values})
    with tempfile.TemporaryDirectory() as folder, targets(Path(folder)) as found:
        rows = measure(work, f"workers whose forward takes {1e3 * FORWARD:.0f} ms, {STEPS} forwards a request", found)
    render(rows, work)
    print("\n".join(summary(rows)))
    return 1 if any(row.errors for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
