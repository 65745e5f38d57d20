"""Mixed load on a server of the demo for minutes, and what is left of it afterwards:

    python -m tests.soak minutes=10 [clients=16] [seed=0]

Every answer is compared with what the idle server answered to the same request; clients leave, send nonsense, and twice
one asks for more than fits into the deadline (504, intended). At the end nothing may run or wait, the arena must be
empty, memory must be as large as after the warm-up, and `/health` must have answered all the time. Exits 0 or 1.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from dlm.bench.load.drive import HealthProbe
from dlm.bench.load.figures import percentiles
from tests.serving.server import Server, serving
from tests.serving.traffic import Traffic

WARM_UP = 0.35
"""Share of the time after which memory should not grow any more."""
DEADLINE = 30.0
"""Seconds that the server gives each request."""
MISSED = (0.05, 0.6)
"""Shares of the time after which a request comes that misses its deadline."""
GROWTH = 24.0
"""MiB that it may grow all the same: allocators do not give back all that they take."""
HEALTH = 0.1
"""Seconds, 99 % of the answers of `/health`."""
PATIENCE = 10.0
"""Seconds in which the last requests may end."""
GAUGES = ("dlm_sequences_waiting", "dlm_sequences_running", "dlm_arena_slots_used")


@dataclass(frozen=True)
class Sample:
    """The server at one moment: MiB of memory, open files and threads, and its gauges."""

    memory: float
    files: int
    threads: int
    gauges: dict[str, float]


class Sampler(threading.Thread):
    """Looks at the server again and again."""

    def __init__(self, server: Server, every: float) -> None:
        super().__init__(name="sampler", daemon=True)
        self.samples: list[Sample] = []
        self._server, self._every, self._over = server, every, threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._every):
            self.samples.append(look(self._server))

    def finish(self) -> list[Sample]:
        self._over.set()
        self.join()
        return self.samples


def look(server: Server) -> Sample:
    """The server now."""
    folder = Path(f"/proc/{server.process.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return Sample(
        memory=int(status["VmRSS"].split()[0]) / 1024,
        files=len(list((folder / "fd").iterdir())),
        threads=int(status["Threads"]),
        gauges={name: float(values[name]) for name in GAUGES},
    )


@dataclass
class Report:
    """What the soak has seen.

    Attributes:
        seconds: of load.
        statuses, wrong, intended: as in `Traffic`.
        server_errors: 5xx by the server's own count, and streams that ended with an error.
        health: seconds of each answer of `/health`.
        first, last: after the warm-up, and just before the end of the load (medians of a tenth of the time).
        memory: MiB by tenths of the time of the load.
        before, after: the idle server.
        peak: the largest gauges.
        code: what the server exited with.
        log: lines of its log that tell of a failure.
    """

    seconds: float
    statuses: Counter[tuple[str, str]]
    wrong: list[str]
    intended: int
    health: list[float]
    first: float
    last: float
    memory: list[float]
    before: Sample
    after: Sample
    peak: dict[str, float]
    server_errors: int = 0
    code: int | None = None
    log: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """All that should not have been."""
        found = self.wrong[:20] + ([f"and {len(self.wrong) - 20} more"] if len(self.wrong) > 20 else [])
        if self.server_errors != self.intended:
            found.append(
                f"{self.server_errors} requests ended with 5xx or a broken stream, {self.intended} asked for it"
            )
        found += [f"{name} is {value:g} at the end" for name, value in self.after.gauges.items() if value]
        if self.last > self.first + GROWTH:
            found.append(f"memory grew from {self.first:.1f} to {self.last:.1f} MiB")
        if self.after.files > self.before.files + 4:
            found.append(f"open files: {self.before.files} before, {self.after.files} after")
        if percentiles(self.health)["p99"] > HEALTH:
            found.append(f"/health: 99 % within {1e3 * percentiles(self.health)['p99']:.0f} ms, not {1e3 * HEALTH:.0f}")
        found += [f"in the log: {line}" for line in self.log[:20]]
        if self.code != 0:
            found.append(f"the server exited with {self.code}")
        return found

    def lines(self) -> list[str]:
        """For people."""
        health = percentiles(self.health)
        total = self.statuses.total()
        return [
            f"{total} requests in {self.seconds:.0f} s ({total / self.seconds:.1f}/s)",
            *(f"  {kind:<24} {status:<30} {count:>7}" for (kind, status), count in sorted(self.statuses.items())),
            f"5xx: {self.server_errors}, of which asked for: {self.intended}",
            f"memory, MiB: {self.before.memory:.1f} idle before, {self.first:.1f} after the warm-up, "
            f"{self.last:.1f} at the end of the load, {self.after.memory:.1f} idle after",
            f"  by tenths of the time: {', '.join(f'{value:.0f}' for value in self.memory)}",
            f"open files: {self.before.files} before, {self.after.files} after; "
            f"threads: {self.before.threads} and {self.after.threads}",
            *(
                f"{name}: at most {self.peak[name]:g}, {value:g} at the end"
                for name, value in self.after.gauges.items()
            ),
            f"/health, ms: p50 {1e3 * health['p50']:.1f}, p99 {1e3 * health['p99']:.1f}, most "
            f"{1e3 * max(self.health):.1f}, of {len(self.health)}",
            f"exit code of the server: {self.code}",
        ]


def soak(seconds: float, clients: int, seed: int, folder: Path, *, deadlines: bool) -> Report:
    """Start a server, load it, stop it.

    Args:
        seconds: of load.
        clients: at once.
        seed: of what they do.
        folder: where the server runs.
        deadlines: let two requests miss theirs.
    """
    settings = ("batch_size=8", f"request_timeout={DEADLINE:g}", "result_ttl=15")
    with serving(folder, *settings) as server:
        before = look(server)
        probe, sampler = HealthProbe(server.url), Sampler(server, min(1.0, seconds / 100))
        traffic = Traffic(server.url, random.Random(seed))
        load = _load(traffic, clients, seconds, [probe, sampler], deadlines=deadlines)
        with ThreadPoolExecutor(1) as pool:  # the caller's thread may have an event loop already
            pool.submit(asyncio.run, load).result()
        health, samples = probe.finish(), sampler.finish()
        until = time.monotonic() + PATIENCE
        while any((after := look(server)).gauges.values()) and time.monotonic() < until:
            time.sleep(0.1)
        text = httpx.get(f"{server.url}/metrics").text
        server_errors = sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if (line.startswith("dlm_requests_total{") and 'outcome="server_error"' in line)
            or line.startswith("dlm_broken_streams_total ")
        )
    memory = [one.memory for one in samples]
    tenth, warm = max(1, len(memory) // 10), int(len(memory) * WARM_UP)
    return Report(
        seconds=seconds,
        statuses=traffic.statuses,
        wrong=traffic.wrong,
        intended=traffic.intended,
        health=health,
        first=statistics.median(memory[warm : warm + tenth]),
        last=statistics.median(memory[-tenth:]),
        memory=[statistics.median(memory[place : place + tenth]) for place in range(0, 10 * tenth, tenth)],
        before=before,
        after=after,
        peak={name: max(one.gauges[name] for one in samples) for name in GAUGES},
        server_errors=int(server_errors),
        code=server.process.returncode,
        log=[line.strip() for line in server.lines if "ERROR" in line or "CRITICAL" in line or "Traceback" in line],
    )


async def _load(
    traffic: Traffic, clients: int, seconds: float, watchers: list[threading.Thread], *, deadlines: bool
) -> None:
    await traffic.learn()
    for watcher in watchers:
        watcher.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(traffic.run(clients, seconds))
            for share in MISSED if deadlines else ():
                tasks.create_task(_later(share * seconds, traffic))
    finally:
        await traffic.close()


async def _later(seconds: float, traffic: Traffic) -> None:
    await asyncio.sleep(seconds)
    await traffic.miss_a_deadline()


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    values = {"minutes": 10.0, "clients": 16.0, "seed": 0.0}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in values:
            raise SystemExit(f"{argument!r}: known here: {', '.join(f'{name}=' for name in values)}")
        values[key] = float(value)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(60 * values["minutes"], int(values["clients"]), int(values["seed"]), Path(folder), deadlines=True)
    print("\n".join(report.lines()))
    faults = report.faults()
    print("\n".join(f"FAULT {fault}" for fault in faults) or f"no fault ({time.monotonic() - begun:.0f} s in all)")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
