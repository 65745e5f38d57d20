"""One row of the table: what was measured and what follows from it. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from dlm.bench.ceiling import Seconds
from dlm.bench.workloads import Case


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        case: what was decoded.
        rounds: how often.
        seconds, reference_seconds: medians over the rounds.
        forwards, reference_forwards: model calls; a packed one counts once.
        positions: recomputed by each side, the same on both.
        same_tokens: share of the decoded tokens that are equal on both sides; random weights have near-ties, which
            rounding decides.
        ideal, reference_ideal: the parts of the ceiling.
        floor: seconds of ours at the machine's peak.
        profile: where our time goes, if asked for.
    """

    case: Case
    rounds: int
    seconds: float
    reference_seconds: float
    forwards: int
    reference_forwards: int
    positions: int
    same_tokens: float
    ideal: Seconds
    reference_ideal: Seconds
    floor: float
    profile: dict[str, float] | None = None

    @property
    def ratio(self) -> float:
        """How many times faster ours was."""
        return self.reference_seconds / self.seconds

    @property
    def ceiling(self) -> float:
        """How many times faster ours could have been."""
        return self.reference_ideal.total / self.ideal.total

    @property
    def share(self) -> float:
        """Of the ceiling."""
        return self.ratio / self.ceiling
