"""Samplers that reveal a fixed number per step: LLaDA's schedule (arXiv 2502.09992), and left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlm.decoding.params import SamplingParams
from dlm.decoding.samplers.base import Sampler, check_length
from dlm.decoding.types import Indices, Scores, StepContext
from dlm.errors import RequestError

ORDERS = ("low_confidence", "random", "entropy", "margin")


@dataclass(frozen=True)
class Fixed(Sampler):
    """With n masks and s steps, the first n mod s steps reveal n // s + 1 candidates, the others n // s.

    Later steps make up for candidates that were due but proposed the mask id.

    Attributes:
        remasking: which candidates come first: `low_confidence` (highest probability), `random`, `entropy` (lowest) or
            `margin` (largest lead over the second token).
    """

    remasking: str = "low_confidence"
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        if self.remasking not in ORDERS:
            raise RequestError(f"remasking={self.remasking!r} must be one of {', '.join(ORDERS)}")

    @property
    def ranks_by(self) -> str:
        return self.remasking

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        check_length(self.name, params)
        if params.steps < num_blocks:
            raise RequestError(
                f"steps={params.steps} must be at least {num_blocks}, one for each block of "
                f"block_length={params.block_length}; raise steps or block_length"
            )

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        each, extra = divmod(context.masks, context.steps)
        done = min(context.step + 1, context.steps)
        due = context.masks if done == context.steps else done * each + min(done, extra)
        revealed = context.masks - context.left
        return scores.descending()[: max(1, due - revealed)], None


@dataclass(frozen=True)
class Leftmost(Sampler):
    """The leftmost candidate: autoregressive order."""

    name: ClassVar[str] = "leftmost"

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        return np.array([0]), None
