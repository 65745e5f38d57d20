"""One round against one server: when requests are sent, and what is measured meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from dlm.bench.load.target import Client, LoadTarget, Reply

HEALTH_EVERY = 0.02
"""Seconds between two probes of `/health`."""
HEALTH_TIMEOUT = 30.0


@dataclass(frozen=True)
class LoadPlan:
    """A row of the table: how requests arrive.

    Attributes:
        clients: closed loop: number of clients; 0 is an open loop.
        rate, burst: open loop: requests per second, and mean number arriving at once.
    """

    clients: int = 0
    rate: float = 0.0
    burst: float = 1.0

    def __str__(self) -> str:
        if self.clients:
            return f"{self.clients} client{'s' * (self.clients > 1)}"
        return f"{self.rate:g}/s" if self.burst == 1 else f"{self.rate:g}/s, {self.burst:g} at once"


@dataclass
class Round:
    """The results of one round.

    Attributes:
        answers: in the order of completion.
        seconds: from the first request to the last answer.
        health: seconds of each `/health` probe; a failed one counts as `HEALTH_TIMEOUT`.
        batches: number of forwards by number of canvases; None if unknown.
    """

    answers: list[Reply] = field(default_factory=list)
    seconds: float = 0.0
    health: list[float] = field(default_factory=list)
    batches: Counter[int] | None = None


class HealthProbe(threading.Thread):
    """Polls `/health` on its own connection and in its own thread."""

    def __init__(self, url: str) -> None:
        super().__init__(name="health", daemon=True)
        self.seconds: list[float] = []
        self._url, self._over = f"{url}/health", threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=HEALTH_TIMEOUT, trust_env=False) as client:
            self._ask(client)  # the first opens the connection
            while not self.seconds or not self._over.wait(HEALTH_EVERY):
                self.seconds.append(self._ask(client))

    def _ask(self, client: httpx.Client) -> float:
        begun = time.perf_counter()
        try:
            good = client.get(self._url).status_code == 200
        except httpx.HTTPError:
            good = False
        return time.perf_counter() - begun if good else HEALTH_TIMEOUT

    def finish(self) -> list[float]:
        """Stop, and return the measured seconds."""
        self._over.set()
        self.join()
        return self.seconds


def drive(
    target: LoadTarget,
    load: LoadPlan,
    bodies: Sequence[dict[str, Any]],
    due: Sequence[float],
    *,
    seconds: float,
    timeout: float,
) -> Round:
    """Send a round's requests to a server.

    Args:
        target: the server.
        load: how requests arrive.
        bodies: sent in this order, as far as the time allows.
        due: open loop: seconds from the start at which each is sent.
        seconds: after which no more requests are sent.
        timeout: of a client.
    """
    before = target.batch_sizes()
    probe = HealthProbe(target.url)
    probe.start()
    try:
        answers = asyncio.run(_drive(target, load, bodies, due, seconds, timeout))
    finally:
        health = probe.finish()
    after = target.batch_sizes()
    began = min(answer.begun for answer in answers)
    return Round(
        answers=answers,
        seconds=max(answer.begun + answer.seconds for answer in answers) - began,
        health=health,
        batches=None if before is None or after is None else after - before,
    )


async def _drive(
    target: LoadTarget,
    load: LoadPlan,
    bodies: Sequence[dict[str, Any]],
    due: Sequence[float],
    seconds: float,
    timeout: float,
) -> list[Reply]:
    answers: list[Reply] = []
    left = iter(zip(bodies, due, strict=True) if due else ((body, 0.0) for body in bodies))
    begun = time.perf_counter()
    async with Client(target, timeout) as client, asyncio.TaskGroup() as tasks:

        async def ask(body: dict[str, Any], at: float | None = None) -> None:
            answers.append(await client.ask(body, at))

        async def keep_asking() -> None:
            for body, _ in left:
                await ask(body)
                if time.perf_counter() - begun >= seconds:
                    return

        if load.clients:
            for _ in range(load.clients):
                tasks.create_task(keep_asking())
        else:
            for number, (body, at) in enumerate(left):
                if number and at >= seconds:
                    break
                await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
                tasks.create_task(ask(body, begun + at))
    return answers
