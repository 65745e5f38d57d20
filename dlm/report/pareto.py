"""The Pareto front of runs, and its area as one number for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
"""Speed (tokens per forward) and accuracy (0..1); higher is better for both."""


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the Pareto-optimal points, slow to fast: no other point is as fast and as accurate, and better in one.

    Of equal points only the first is included.
    """
    kept: list[int] = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda index: (-points[index][0], -points[index][1], index)):
        if points[index][1] > best:
            best = points[index][1]
            kept.append(index)
    return kept[::-1]


def area(points: Sequence[Point]) -> float:
    """The area that the points dominate: below the best accuracy reached at x or more tokens per forward, over x from
    0. In tokens per forward; 0 without points.

    The hypervolume of Zitzler and Thiele (1998) with the origin as reference point. It grows only with points that move
    the front outwards.
    """
    total = reached = 0.0
    for index in front(points):
        speed, accuracy = points[index]
        total += (speed - reached) * accuracy
        reached = speed
    return total


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of `count` answers (Wilson, 1927): it stays in 0..1 and does not vanish
    at either end."""
    z = 1.959964
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    return max(0.0, (middle - spread) / whole), min(1.0, (middle + spread) / whole)
