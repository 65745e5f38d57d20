"""Samplers of the block-causal families: LLaDA2.0, LLaDA2.1 with editing, SDAR. Schedules are based on the block
length, not on the block's number of masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlm.decoding.params import check_real, check_whole
from dlm.decoding.samplers.base import Sampler
from dlm.decoding.types import Indices, Scores, StepContext
from dlm.errors import RequestError


def quota(context: StepContext, steps: int) -> int:
    """Positions scheduled for this step when a block's positions are split over `steps`; earlier steps take more."""
    each, extra = divmod(context.block_length, steps)
    return max(1, each + (context.step < extra)) if context.step < steps else context.left


def sure_or_scheduled(scores: Scores, threshold: float, count: int) -> Indices:
    """All candidates with confidence > threshold if there are at least `count`, else the best `count`."""
    sure = np.flatnonzero(scores.confidence > threshold)
    return sure if len(sure) >= count else scores.descending()[:count]


@dataclass(frozen=True)
class LLaDA2(Sampler):
    """All candidates with confidence > threshold if they reach the scheduled number, else the best up to that number
    (LLaDA2.0's `generate`).

    Attributes:
        threshold: confidence above which a candidate is revealed.
        steps_per_block: steps over which a block's positions are split.
        minimal_topk: limits steps to gen_length // minimal_topk.
    """

    threshold: float = 0.95
    steps_per_block: int = 32
    minimal_topk: int = 1
    name: ClassVar[str] = "llada2"

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)
        check_whole("steps_per_block", self.steps_per_block, 1)
        check_whole("minimal_topk", self.minimal_topk, 1)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        steps = max(1, min(self.steps_per_block, context.gen_length // self.minimal_topk))
        return sure_or_scheduled(scores, self.threshold, quota(context, steps)), None


@dataclass(frozen=True)
class LLaDA21Edit(Sampler):
    """All candidates with confidence > threshold, or else the best `num_to_transfer`; also replaces every generated
    token of the block whose proposal differs with confidence > `editing_threshold` (LLaDA2.1's `generate`).

    Once no mask is left, at most `max_post_steps` more steps run, ending with the first that edits nothing.
    """

    threshold: float = 0.95
    editing_threshold: float = 0.9
    num_to_transfer: int = 1
    max_post_steps: int = 16
    name: ClassVar[str] = "llada21_edit"
    edits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)
        check_real("editing_threshold", self.editing_threshold, 0.0, 1.0)
        check_whole("num_to_transfer", self.num_to_transfer, 1)
        check_whole("max_post_steps", self.max_post_steps, 1)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        post_steps: int = memory or 0
        confidence, masked = scores.confidence, scores.masked
        edited = ~masked & scores.differs & (confidence > self.editing_threshold) & ~scores.proposes_mask
        if not masked.any():
            return np.flatnonzero(edited), post_steps + 1 if edited.any() else self.max_post_steps
        chosen = masked & (confidence > self.threshold)
        if np.count_nonzero(chosen) < self.num_to_transfer:
            ranked = scores.descending()
            chosen[ranked[masked[ranked]][: self.num_to_transfer]] = True
        return np.flatnonzero(chosen | edited), post_steps

    def done(self, left: int, memory: Any) -> bool:
        return left == 0 and memory is not None and memory >= self.max_post_steps


STRATEGIES = ("low_confidence_dynamic", "low_confidence_static", "sequential")


@dataclass(frozen=True)
class Sdar(Sampler):
    """SDAR's `block_diffusion_generate`.

    Attributes:
        remasking_strategy: `low_confidence_dynamic` (all with confidence > `confidence_threshold` if they reach the
            scheduled number, else the best up to it), `low_confidence_static` (the best up to the scheduled number) or
            `sequential` (the leftmost up to it).
        confidence_threshold: as above.
        steps_per_block: steps over which a block's positions are split; None reveals one position per step.
    """

    remasking_strategy: str = "low_confidence_dynamic"
    confidence_threshold: float = 0.9
    steps_per_block: int | None = None
    name: ClassVar[str] = "sdar"

    def __post_init__(self) -> None:
        if self.remasking_strategy not in STRATEGIES:
            raise RequestError(f"remasking_strategy={self.remasking_strategy!r} must be one of {', '.join(STRATEGIES)}")
        check_real("confidence_threshold", self.confidence_threshold, 0.0, 1.0)
        if self.steps_per_block is not None:
            check_whole("steps_per_block", self.steps_per_block, 1)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        count = quota(context, self.steps_per_block or context.block_length)
        if self.remasking_strategy == "sequential":
            return np.arange(min(count, len(scores.priority))), None
        if self.remasking_strategy == "low_confidence_static":
            return scores.descending()[:count], None
        return sure_or_scheduled(scores, self.confidence_threshold, count), None
