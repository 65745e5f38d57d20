"""Scores over prompts, and how sure they are. Plain numbers; knows nothing of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
"""Draws of a bootstrap."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        method: `wilson` or `bootstrap`.
        level: such as 0.95.
        low, high: its ends, 0..1.
    """

    method: str
    level: float
    low: float
    high: float


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that at least one of `k` samples is right, of `samples` drawn of which `right` are: unbiased.

    1 - C(samples - right, k) / C(samples, k), arXiv 2107.03374, equation 1. Needs 1 <= k <= samples.
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} of {samples} samples, {right} right: k must be 1..{samples}, right 0..{samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def wilson(right: int, total: int, level: float) -> Interval:
    """Wilson's score interval (1927) for a share of `total` independent trials; 0..1 without any."""
    if total == 0:
        return Interval("wilson", level, 0.0, 1.0)
    z, share = NormalDist().inv_cdf((1 + level) / 2), right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return Interval("wilson", level, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def bootstrap(values: Sequence[float], level: float, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over prompts, whose samples are not independent: 2,000 draws from `seed`.

    0..1 without any value.
    """
    if not values:
        return Interval("bootstrap", level, 0.0, 1.0)
    rng, each = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    means = [float(each[rng.integers(0, len(each), len(each))].mean()) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval("bootstrap", level, float(low), float(high))


def interval(values: Sequence[float], level: float) -> Interval:
    """For the mean of `values`, one a prompt: Wilson's where each is 0 or 1, else a bootstrap."""
    if all(value in (0.0, 1.0) for value in values):
        return wilson(round(sum(values)), len(values), level)
    return bootstrap(values, level)
