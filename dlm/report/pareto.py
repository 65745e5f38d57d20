"""Which runs no other beats, and one number for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
"""Speed (tokens per forward) and accuracy (0..1): of both, more is better."""


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points than which none is as fast and as accurate and better in one of the two; slow to fast.

    Of equal points the first counts.
    """
    kept: list[int] = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda index: (-points[index][0], -points[index][1], index)):
        if points[index][1] > best:
            best = points[index][1]
            kept.append(index)
    return kept[::-1]


def area(points: Sequence[Point]) -> float:
    """What the points dominate: the area under the best accuracy that is had at x tokens per forward or more, over x
    from 0. In tokens per forward; 0 without a point.

    The hypervolume of Zitzler and Thiele (1998) with the origin as its reference. It grows with each point that moves
    the front outwards and with no other.
    """
    total = reached = 0.0
    for index in front(points):
        speed, accuracy = points[index]
        total += (speed - reached) * accuracy
        reached = speed
    return total


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of `count` answers, after Wilson (1927): it stays in 0..1 and does not
    vanish at either end."""
    z = 1.959964
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    return max(0.0, (middle - spread) / whole), min(1.0, (middle + spread) / whole)
