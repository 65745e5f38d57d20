"""Samplers that reveal every sufficiently confident candidate (Fast-dLLM, arXiv 2505.22618; dInfer, arXiv 2510.08666;
EB-Sampler, arXiv 2505.24857; KLASS, arXiv 2511.05664)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlm.decoding.params import check_real, check_whole
from dlm.decoding.samplers.base import Sampler
from dlm.decoding.types import Indices, Scores, StepContext


@dataclass(frozen=True)
class Threshold(Sampler):
    """Every candidate with confidence >= threshold, and always the best one."""

    threshold: float = 0.9
    name: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        chosen = scores.confidence >= max(self.threshold, context.floor)
        chosen[scores.descending()[0]] = True
        return np.flatnonzero(chosen), memory


@dataclass(frozen=True)
class Factor(Sampler):
    """Candidates by descending confidence: rank r (from 1) needs confidence >= 1 - factor / (r + 1); the prefix up to
    the first failure, and always the best one.

    As in Fast-dLLM's program, a first failure at the last rank still reveals all.
    """

    factor: float = 1.0
    name: ClassVar[str] = "factor"

    def __post_init__(self) -> None:
        check_real("factor", self.factor, 0.0, None)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        ranked = scores.descending()
        bar = 1.0 - self.factor / (np.arange(len(ranked)) + 2.0)
        failed = scores.confidence[ranked] < bar
        failed[0] = False
        first = int(np.argmax(failed)) if failed.any() else len(ranked)
        return ranked if first == len(ranked) - 1 else ranked[:first], None


def near_best(scores: Scores, threshold: float) -> Indices:
    """Candidates with confidence >= min(threshold, best confidence - 1e-5) that do not propose the mask id: dInfer's
    threshold rule, which reveals near-ties of the best together."""
    confidence = np.where(scores.proposes_mask, -1.0, scores.confidence)
    bar = min(threshold, float(confidence.max()) - 1e-5)
    return np.flatnonzero((confidence >= bar) & ~scores.proposes_mask)


@dataclass(frozen=True)
class DInferThreshold(Sampler):
    """As `Threshold`, with the threshold lowered to at most the best confidence - 1e-5; positions that propose the mask
    id are not candidates (dInfer's threshold decoder)."""

    threshold: float = 0.9
    name: ClassVar[str] = "dinfer_threshold"

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        return near_best(scores, max(self.threshold, context.floor)), None


@dataclass(frozen=True)
class EntropyBound(Sampler):
    """Candidates by ascending entropy H: the longest prefix with sum H - max H <= gamma, at least one (EB-Sampler)."""

    gamma: float = 0.1
    name: ClassVar[str] = "entropy_bound"
    ranks_by: ClassVar[str] = "entropy"

    def __post_init__(self) -> None:
        check_real("gamma", self.gamma, 0.0, None)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        ranked = scores.descending()
        entropy = -scores.priority[ranked]
        fits = np.cumsum(entropy) - entropy <= self.gamma
        fits[0] = True
        count = len(ranked) if fits.all() else int(np.argmin(fits))
        return ranked[:count], None


@dataclass(frozen=True)
class Klass(Sampler):
    """Candidates with confidence >= threshold whose distribution moved by KL <= kl_threshold in each of the last
    `history` steps of the block; if there are none, the best one (KLASS)."""

    threshold: float = 0.9
    kl_threshold: float = 0.01
    history: int = 2
    name: ClassVar[str] = "klass"
    track: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)
        check_real("kl_threshold", self.kl_threshold, 0.0, None)
        check_whole("history", self.history, 1)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        calm = scores.divergence <= self.kl_threshold
        before: dict[int, int] = memory or {}
        counts = {int(at): before.get(int(at), 0) + 1 for at in scores.positions[calm]}
        settled = np.array([counts.get(int(at), 0) >= self.history for at in scores.positions])
        chosen = np.flatnonzero(settled & (scores.confidence >= max(self.threshold, context.floor)))
        return chosen if len(chosen) else scores.descending()[:1], counts
