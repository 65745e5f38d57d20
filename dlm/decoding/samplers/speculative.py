"""`linear_spec`: several autoregressive tokens per forward: drafts a block at once and keeps what a causal pass accepts
(Nemotron-Labs-Diffusion's `linear_spec_generate`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlm.decoding.params import SamplingParams
from dlm.decoding.samplers.base import Sampler
from dlm.decoding.types import NONE, Indices, Scores, StepContext
from dlm.errors import RequestError

DRAFTED = "drafted"
"""Memory while there are drafts not yet verified by a causal pass."""


@dataclass(frozen=True)
class LinearSpec(Sampler):
    """With engine `linear_spec`: a forward that reveals every mask of its window drafts it; the next one verifies.

    Drafts are kept up to the first that the causal pass would not choose; that one is replaced and the rest are masked
    again. Greedy decoding matches `ar`; with a temperature the distribution is the same.
    """

    name: ClassVar[str] = "linear_spec"
    edits: ClassVar[bool] = True
    ignores_budget: ClassVar[bool] = True

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        if params.max_nfe is not None:
            raise RequestError(
                f"max_nfe={params.max_nfe} is not supported by linear_spec: its number of forwards depends on the text"
            )

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        if memory is None:
            return np.flatnonzero(scores.masked), DRAFTED
        wrong = np.flatnonzero(scores.differs)
        return wrong[:1], None

    def remask(self, scores: Scores, chosen: Indices) -> Indices:
        if not len(chosen):
            return NONE
        behind = np.arange(chosen[0] + 1, len(scores.tokens))
        return behind[~scores.masked[behind]]

    def done(self, left: int, memory: Any) -> bool:
        return left == 0 and memory is None

    def is_final(self, memory: Any) -> bool:
        return memory is None
