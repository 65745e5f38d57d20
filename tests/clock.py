"""Time that a test moves: put in the place of the `time` module of what is tested."""

from __future__ import annotations


class Clock:
    """Passes by `sleep` alone.

    Attributes:
        now: what the clock shows.
        waits: what was slept, call by call.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waits.append(seconds)
