"""What a sampler is: which candidates of a canvas become tokens. Host values, one call for each canvas and forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from dlm.decoding.params import SamplingParams
from dlm.decoding.types import NONE, Floats, Indices, LogitBias, Scores, StepContext
from dlm.errors import RequestError


class Sampler(ABC):
    """Says which candidates become tokens. A value; what it must remember for a block it returns as memory.

    The defaults are those of a sampler that ranks by confidence, edits nothing and is done when no mask is left.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What users call it."""

    @property
    def ranks_by(self) -> str:
        """The quantity candidates are ranked by: `low_confidence`, `entropy`, `margin` or `random`."""
        return "low_confidence"

    @property
    def whole_canvas(self) -> bool:
        """With engine `full` the canvas is one block."""
        return False

    @property
    def edits(self) -> bool:
        """Decided positions of the block are candidates too; those chosen are replaced."""
        return False

    @property
    def track(self) -> bool:
        """`Scores.divergence` is wanted."""
        return False

    @property
    def ignores_budget(self) -> bool:
        """It makes progress by a rule of its own: what it chooses is written and nothing else."""
        return False

    @property
    def biases(self) -> bool:
        """`logit_bias` is asked, with the most probable tokens of the raw logits."""
        return False

    def check(self, params: SamplingParams, num_blocks: int) -> None:  # noqa: B027  # most honour all
        """Raise `RequestError` when the sampler cannot honour `params`; by default any will do."""

    def skipped_steps(self, context: StepContext, uniform: Callable[[int], Floats]) -> int:
        """How many steps of the schedule from this one on reveal nothing, so that no forward is made for them.

        `uniform` gives the noise of the block's masks at a step.
        """
        return 0

    def logit_bias(self, scores: Scores, memory: Any) -> tuple[LogitBias, Any]:
        """What to add to the logits before proposals are made again, and the memory from here."""
        return LogitBias(NONE, NONE, np.zeros(0)), memory

    @abstractmethod
    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        """Indices of the candidates to write, and the memory for the block's next step."""

    def remask(self, scores: Scores, chosen: Indices) -> Indices:
        """Indices of decided candidates that become masks again, the least sure first; none of those chosen."""
        return NONE

    def done(self, left: int, memory: Any) -> bool:
        """Whether the block is finished with `left` masks in it."""
        return left == 0

    def is_final(self, memory: Any) -> bool:
        """Whether what stands in the block is final."""
        return True


def check_length(name: str, params: SamplingParams) -> None:
    """Raise `RequestError` when the answer may grow: the sampler shares a known number of masks out over steps."""
    if params.initial_gen_length is not None:
        raise RequestError(
            f"initial_gen_length={params.initial_gen_length}: sampler {name} shares out a known number of masks; "
            "choose one without a schedule, such as threshold"
        )
