"""The sampler interface: selects the candidates that become tokens. Host values, one call per canvas and forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from dlm.decoding.params import SamplingParams
from dlm.decoding.types import NONE, Floats, Indices, LogitBias, Scores, StepContext
from dlm.errors import RequestError


class Sampler(ABC):
    """Selects the candidates that become tokens. An immutable value: state within a block is returned as memory.

    The defaults rank by confidence, edit nothing, and finish when no mask is left.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its public name."""

    @property
    def ranks_by(self) -> str:
        """The quantity candidates are ranked by: `low_confidence`, `entropy`, `margin` or `random`."""
        return "low_confidence"

    @property
    def whole_canvas(self) -> bool:
        """Whether the canvas is one block with engine `full`."""
        return False

    @property
    def edits(self) -> bool:
        """Whether decided positions of the block are candidates too; selected ones are replaced."""
        return False

    @property
    def track(self) -> bool:
        """Whether it needs `Scores.divergence`."""
        return False

    @property
    def ignores_budget(self) -> bool:
        """Whether it guarantees progress itself: exactly what it selects is written."""
        return False

    @property
    def biases(self) -> bool:
        """Whether to call `logit_bias`, with the most probable tokens of the raw logits."""
        return False

    def check(self, params: SamplingParams, num_blocks: int) -> None:  # noqa: B027  # most support all
        """Raise `RequestError` if the sampler does not support `params`; by default it supports all."""

    def skipped_steps(self, context: StepContext, uniform: Callable[[int], Floats]) -> int:
        """Number of schedule steps from this one on that reveal nothing, so that their forwards are skipped.

        `uniform` returns the noise of the block's masks at a step.
        """
        return 0

    def logit_bias(self, scores: Scores, memory: Any) -> tuple[LogitBias, Any]:
        """Bias to add to the logits before proposing again, and the updated memory."""
        return LogitBias(NONE, NONE, np.zeros(0)), memory

    @abstractmethod
    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        """Indices of the candidates to write, and the updated memory."""

    def remask(self, scores: Scores, chosen: Indices) -> Indices:
        """Indices of decided candidates to mask again, least confident first; never any of `chosen`."""
        return NONE

    def done(self, left: int, memory: Any) -> bool:
        """Whether the block is finished with `left` masks remaining."""
        return left == 0

    def is_final(self, memory: Any) -> bool:
        """Whether the block's tokens are final."""
        return True


def check_length(name: str, params: SamplingParams) -> None:
    """Raise `RequestError` if the answer may grow: the sampler spreads a fixed number of masks over its steps."""
    if params.initial_gen_length is not None:
        raise RequestError(
            f"initial_gen_length={params.initial_gen_length}: sampler {name} schedules a fixed number of masks; "
            "choose one without a schedule, such as threshold"
        )
