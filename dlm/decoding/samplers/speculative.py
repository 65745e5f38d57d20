"""`linear_spec`: autoregressive tokens, several a forward: draft a block at once, keep what a causal pass agrees with
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
"""Memory while drafts stand that no causal pass has seen."""


@dataclass(frozen=True)
class LinearSpec(Sampler):
    """With engine `linear_spec`: a forward that reveals every mask of its window drafts it; the next one verifies.

    Drafts stay up to the first that the causal pass would not have chosen; that one is replaced, the rest are masked
    again. Greedy, the answer is that of `ar`; with a temperature it has the same distribution.
    """

    name: ClassVar[str] = "linear_spec"
    edits: ClassVar[bool] = True
    ignores_budget: ClassVar[bool] = True

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        if params.max_nfe is not None:
            raise RequestError(f"max_nfe={params.max_nfe} cannot be kept by linear_spec, whose forwards depend on text")

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
