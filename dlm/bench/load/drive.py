"""When requests are sent, and what is watched meanwhile: one round of one server."""

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
"""Seconds between two looks at `/health`."""
HEALTH_TIMEOUT = 30.0


@dataclass(frozen=True)
class LoadPlan:
    """A row of the table: how requests come.

    Attributes:
        clients: closed loop: so many; 0 is an open loop.
        rate, burst: open loop: requests a second, and how many come at once on average.
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
    """What came of it.

    Attributes:
        answers: in the order of their ends.
        seconds: from the first request to the last answer.
        health: seconds of each answer of `/health`; one that did not come counts as `HEALTH_TIMEOUT`.
        batches: how many forwards held each number of canvases; None where it cannot be known.
    """

    answers: list[Reply] = field(default_factory=list)
    seconds: float = 0.0
    health: list[float] = field(default_factory=list)
    batches: Counter[int] | None = None


class HealthProbe(threading.Thread):
    """Asks `/health` again and again, on a connection and in a thread of its own."""

    def __init__(self, url: str) -> None:
        super().__init__(name="health", daemon=True)
        self.seconds: list[float] = []
        self._url, self._over = f"{url}/health", threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=HEALTH_TIMEOUT, trust_env=False) as client:
            self._ask(client)  # the first makes the connection
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
        """Stop; what was measured."""
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
        load: how requests come.
        bodies: at most all of them are sent, in this order.
        due: of an open loop: seconds after the beginning at which each is sent.
        seconds: after which no further is sent.
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
