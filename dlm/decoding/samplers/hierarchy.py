"""Hierarchical decoding (dInfer, arXiv 2510.08666): reveals a position inside each run of masks, splitting it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlm.decoding.params import check_real
from dlm.decoding.samplers.base import Sampler
from dlm.decoding.types import Flags, Floats, Indices, Scores, StepContext


def best_of_runs(positions: Indices, confidence: Floats) -> Flags:
    """Which candidates are the best in their run of adjacent positions; ties are all included."""
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
    sizes = np.diff(starts, append=len(confidence))
    best: Flags = confidence == np.repeat(np.maximum.reduceat(confidence, starts), sizes)
    return best


@dataclass(frozen=True)
class Hierarchy(Sampler):
    """The best mask of each run of adjacent masks, all above a threshold, and always the block's best.

    Comparisons are strict, so that 1 and 0 mean None in dInfer's program; ties within a run are revealed together.

    Attributes:
        threshold: candidates with confidence above this are revealed too; 1 disables this.
        low_threshold: a run's best needs confidence above this; 0 always reveals it.
    """

    threshold: float = 0.9
    low_threshold: float = 0.4
    name: ClassVar[str] = "hierarchy"

    def __post_init__(self) -> None:
        for name in ("threshold", "low_threshold"):
            check_real(name, getattr(self, name), 0.0, 1.0)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        confidence = scores.confidence
        chosen = best_of_runs(scores.positions, confidence) & (confidence > self.low_threshold)
        chosen |= confidence > max(self.threshold, context.floor)
        chosen[scores.descending()[0]] = True
        return np.flatnonzero(chosen), None


@dataclass(frozen=True)
class RemaskHierarchy(Sampler):
    """As `Hierarchy`; in addition, decided positions of the block where the best token's probability is below
    `remask_threshold` become candidates again: if chosen they are replaced, otherwise masked.

    At least one more candidate is chosen than there are such positions, so that every step leaves fewer masks.
    """

    threshold: float = 0.9
    low_threshold: float = 0.4
    remask_threshold: float = 0.4
    name: ClassVar[str] = "remask_hierarchy"
    edits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("threshold", "low_threshold", "remask_threshold"):
            check_real(name, getattr(self, name), 0.0, 1.0)

    def _doubtful(self, scores: Scores) -> Flags:
        doubtful: Flags = ~scores.masked & (scores.confidence < self.remask_threshold)
        return doubtful

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        confidence, doubtful = scores.confidence, self._doubtful(scores)
        eligible = np.flatnonzero(scores.masked | doubtful)
        best = best_of_runs(scores.positions[eligible], confidence[eligible])
        chosen = np.zeros(len(confidence), dtype=np.bool_)
        chosen[eligible] = best & (confidence[eligible] > self.low_threshold)
        chosen[eligible] |= confidence[eligible] > max(self.threshold, context.floor)
        short = int(doubtful.sum()) + 1 - int(chosen.sum())
        if short > 0:
            ranked = scores.descending()
            chosen[ranked[(scores.masked | doubtful)[ranked] & ~chosen[ranked]][:short]] = True
        return np.flatnonzero(chosen), None

    def remask(self, scores: Scores, chosen: Indices) -> Indices:
        doubtful = self._doubtful(scores)
        doubtful[chosen] = False
        ranked = scores.descending()[::-1]
        return ranked[doubtful[ranked]]
