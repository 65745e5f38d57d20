"""Figures of one server under one load, computed from its rounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dlm.bench.load.drive import LoadPlan, Round
from dlm.bench.load.target import OK


@dataclass(frozen=True)
class LoadFigures:
    """One row of the table. Rates, latencies and tokens are those of answered requests.

    Attributes:
        title: of the table.
        load: how requests arrived.
        server: its name.
        requests: sent.
        errors: number of requests without an answer, by status.
        seconds: of all rounds.
        requests_per_second, tokens_per_second: answered, over `seconds`.
        prompt_tokens, tokens: mean per request.
        latency: seconds, by percentile `p50`, `p95`, `p99`.
        first_block: seconds to the first text of streamed answers, by percentile.
        health: seconds of `/health` meanwhile, by percentile.
        mean_batch: canvases per forward; nan if unknown.
    """

    title: str
    load: LoadPlan
    server: str
    requests: int
    errors: dict[str, int]
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    prompt_tokens: float
    tokens: float
    latency: dict[str, float]
    first_block: dict[str, float]
    health: dict[str, float]
    mean_batch: float

    @classmethod
    def of(cls, title: str, load: LoadPlan, server: str, rounds: Sequence[Round]) -> LoadFigures:
        """The figures of several rounds together."""
        answers = [answer for one in rounds for answer in one.answers]
        good = [answer for answer in answers if answer.status == OK]
        seconds = sum(one.seconds for one in rounds)
        sizes: Counter[int] = Counter()
        for one in rounds:
            sizes.update(one.batches or {})
        known = all(one.batches is not None for one in rounds)
        tokens = sum(answer.tokens for answer in good)
        return cls(
            title=title,
            load=load,
            server=server,
            requests=len(answers),
            errors=dict(sorted(Counter(answer.status for answer in answers if answer.status != OK).items())),
            seconds=seconds,
            requests_per_second=len(good) / seconds,
            tokens_per_second=tokens / seconds,
            prompt_tokens=_mean([answer.prompt_tokens for answer in good]),
            tokens=_mean([answer.tokens for answer in good]),
            latency=percentiles([answer.seconds for answer in good]),
            first_block=percentiles([answer.first for answer in good if answer.first is not None]),
            health=percentiles([seconds for one in rounds for seconds in one.health]),
            mean_batch=sum(size * count for size, count in sizes.items()) / sizes.total()
            if known and sizes.total()
            else math.nan,
        )

    def over(self, first: LoadFigures) -> dict[str, float]:
        """Ratios of this server's figures to another's under the same load."""
        return {
            "requests_per_second": _ratio(self.requests_per_second, first.requests_per_second),
            "tokens_per_second": _ratio(self.tokens_per_second, first.tokens_per_second),
            "latency_p50": _ratio(self.latency["p50"], first.latency["p50"]),
        }

    def values(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`p50`, `p95` and `p99` by nearest rank; nan without values."""
    ordered = sorted(values)
    return {
        f"p{share}": ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)] if ordered else math.nan
        for share in (50, 95, 99)
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _ratio(value: float, other: float) -> float:
    return value / other if other else math.nan
