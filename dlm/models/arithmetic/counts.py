"""Numbers of rows that may be computed in one product, and how a batch is cut into them. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

CALL_ROWS = 16
"""What one more call costs, in rows: the weights are read once more."""

TYPICAL_ROWS = (4, 8, 16, 32, 64, 128, 256, 512)
"""Batches by which two sets of counts are compared."""


@dataclass(frozen=True)
class RowCounts:
    """Numbers of rows that give a row the same bits.

    Attributes:
        counts: ascending.
    """

    counts: tuple[int, ...]

    def split(self, rows: int) -> tuple[int, ...]:
        """Counts to compute `rows` rows with, at the least cost; their sum is at least `rows`."""
        return _split(self.counts, rows)

    @property
    def cost(self) -> float:
        """Mean cost over `TYPICAL_ROWS`, as a multiple of one call of just those rows."""
        return sum(_cost(self.split(rows)) / (rows + CALL_ROWS) for rows in TYPICAL_ROWS) / len(TYPICAL_ROWS)

    def __str__(self) -> str:
        if len(self.counts) == 1:
            return f"{self.counts[0]} rows"
        return f"{self.counts[0]} to {self.counts[-1]} rows in {len(self.counts)} sizes"


def _cost(parts: Iterable[int]) -> int:
    return sum(part + CALL_ROWS for part in parts)


@cache
def _split(counts: tuple[int, ...], rows: int) -> tuple[int, ...]:
    whole, rest = divmod(rows, counts[-1])
    full = (counts[-1],) * whole
    return full + _split_rest(counts, rest) if rest else full


def _split_rest(counts: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """As `split`, of fewer rows than the greatest count: one call, or the greatest count below and then the rest."""
    above = (next(count for count in counts if count >= rows),)
    below = max((count for count in counts if count < rows), default=0)
    if not below:
        return above
    parts = (below, *_split_rest(counts, rows - below))
    return min(above, parts, key=_cost)
