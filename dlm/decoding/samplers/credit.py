"""`credit`: tokens that keep winning at a position gain weight there (dInfer, arXiv 2510.08666; CreditDecoding)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlm.decoding.params import check_real
from dlm.decoding.samplers.base import Sampler
from dlm.decoding.samplers.confident import near_best
from dlm.decoding.types import Indices, LogitBias, Scores, StepContext

Credits = dict[int, dict[int, float]]
"""Credit by position and token; tokens that never won have no entry. In float64, because the last bits of numpy's
float32 powers and logarithms differ between CPUs. Amounts are rounded once, when added to the logits."""


@dataclass(frozen=True)
class Credit(Sampler):
    """A table C per block: each step multiplies C by `decay_beta` (except the first), adds p ** `boost_gamma` for each
    masked position's most probable token, and applies dInfer's threshold rule to logits + `credit_alpha` log(1 + C)."""

    threshold: float = 0.9
    credit_alpha: float = 0.7
    boost_gamma: float = 0.2
    decay_beta: float = 0.8
    name: ClassVar[str] = "credit"
    biases: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)
        check_real("credit_alpha", self.credit_alpha, 0.0, None)
        check_real("boost_gamma", self.boost_gamma, 0.0, None)
        check_real("decay_beta", self.decay_beta, 0.0, 1.0)

    def logit_bias(self, scores: Scores, memory: Any) -> tuple[LogitBias, Any]:
        before: Credits = memory or {}
        credits: Credits = {
            place: {token: value * self.decay_beta for token, value in before.get(place, {}).items()}
            for place in scores.positions.tolist()
        }
        gains = (scores.confidence**self.boost_gamma).tolist()
        rows, tokens_out, values = [], [], []
        for row, (position, token) in enumerate(zip(scores.positions.tolist(), scores.tokens.tolist(), strict=True)):
            table = credits[position]
            table[token] = table.get(token, 0.0) + gains[row]
            rows += [row] * len(table)
            tokens_out += list(table)
            values += list(table.values())
        amounts = self.credit_alpha * np.log1p(np.array(values, dtype=np.float64))
        return LogitBias(np.array(rows, dtype=np.int64), np.array(tokens_out, dtype=np.int64), amounts), credits

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        return near_best(scores, max(self.threshold, context.floor)), memory
