"""Samplers that reveal whatever the model is sure enough of (Fast-dLLM, arXiv 2505.22618; dInfer)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlm.decoding.request import SamplingParams, check_real
from dlm.decoding.samplers.base import Indices, Scores, Turn


class Unscheduled:
    """What the samplers of this file share: ranked by confidence, any parameters will do."""

    order: ClassVar[str] = "low_confidence"

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        """Nothing to refuse: these samplers have no schedule."""


@dataclass(frozen=True)
class Threshold(Unscheduled):
    """Every candidate with confidence >= threshold, and always the best one."""

    threshold: float = 0.9
    name: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def select(self, scores: Scores, turn: Turn, memory: Any) -> tuple[Indices, Any]:
        chosen = scores.confidence >= self.threshold
        chosen[scores.descending()[0]] = True
        return np.flatnonzero(chosen), None


@dataclass(frozen=True)
class Factor(Unscheduled):
    """Candidates by descending confidence: rank r (from 1) needs confidence >= 1 - factor / (r + 1); the prefix up to
    the first failure, and always the best one.

    As in Fast-dLLM's program, a first failure at the last rank reveals all.
    """

    factor: float = 1.0
    name: ClassVar[str] = "factor"

    def __post_init__(self) -> None:
        check_real("factor", self.factor, 0.0, None)

    def select(self, scores: Scores, turn: Turn, memory: Any) -> tuple[Indices, Any]:
        ranked = scores.descending()
        bar = 1.0 - self.factor / (np.arange(len(ranked)) + 2.0)
        failed = scores.confidence[ranked] < bar
        failed[0] = False
        first = int(np.argmax(failed)) if failed.any() else len(ranked)
        return ranked if first == len(ranked) - 1 else ranked[:first], None


@dataclass(frozen=True)
class DInferThreshold(Unscheduled):
    """As `Threshold` with the bar lowered to the best candidate's confidence - 1e-5, so that near-ties of the best go
    together; positions that propose the mask id are no candidates (dInfer's threshold decoder)."""

    threshold: float = 0.9
    name: ClassVar[str] = "dinfer_threshold"

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def select(self, scores: Scores, turn: Turn, memory: Any) -> tuple[Indices, Any]:
        confidence = np.where(scores.proposes_mask, -1.0, scores.confidence)
        bar = min(self.threshold, float(confidence.max()) - 1e-5)
        return np.flatnonzero((confidence >= bar) & ~scores.proposes_mask), None
