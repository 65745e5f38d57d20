"""A run's figures so far, summed over its processes. Knows no Lightning."""

from __future__ import annotations

from dataclasses import dataclass

from dlm.distributed.heartbeat import WorkerStatus


@dataclass(frozen=True)
class Totals:
    """A run's figures so far, summed over its processes.

    Attributes:
        rows, errors: answers written, refused prompts among them.
        tokens, nfe: visible tokens, and forwards summed over answers.
        seconds: since decoding began here.
        occupancy: sequences in a model call as a share of the most it may hold, averaged over the processes' calls.
    """

    rows: int
    errors: int
    tokens: int
    nfe: int
    seconds: float
    occupancy: float

    @classmethod
    def of(cls, statuses: list[WorkerStatus], seconds: float) -> Totals:
        steps = sum(status.steps for status in statuses)
        return cls(
            rows=sum(status.rows for status in statuses),
            errors=sum(status.errors for status in statuses),
            tokens=sum(status.tokens for status in statuses),
            nfe=sum(status.nfe for status in statuses),
            seconds=seconds,
            occupancy=sum(status.steps * status.occupancy for status in statuses) / steps if steps else 0.0,
        )

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.nfe if self.nfe else 0.0

    def eta(self, total: int) -> float | None:
        """Seconds to go; None before the first answer."""
        return (total - self.rows) * self.seconds / self.rows if self.rows else None


def clock(seconds: float) -> str:
    """`1:02:03`, `2:03` or `0:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
