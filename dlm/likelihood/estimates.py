"""Combines weighted log-probabilities into an estimate for each text, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlm.decoding.layout import IntArray
from dlm.likelihood.windows import ScoringBatch

COMMON = -1
"""Draw index of terms shared by all draws."""


@dataclass(frozen=True)
class TokenScores:
    """Estimates for `n` texts.

    Attributes:
        mean: `[n]` float64, estimates of the log-probability of each completion, in nats; with the graph if gradients
            were requested.
        stderr: `[n]` float64, standard error over the mask draws as if they were independent (stratified draws do
            better); 0 if nothing is random, nan for a single random draw.
        per_token: for each text, the terms `[length of the completion]` float64 that sum to its mean; None unless
            requested.
    """

    mean: Tensor
    stderr: Tensor
    per_token: list[Tensor] | None = None


@dataclass(frozen=True)
class Scored:
    """The estimate for one text, with each token's contribution.

    Attributes:
        mean, stderr: as in `TokenScores`.
        per_token: `[length of the completion]` float64, the terms.
        best_logprobs: `[length]` float64, log-probability of the most probable token if each token is scored once with
            weight 1; else nan.
        best: `[length]` int64, that token; else -1.
    """

    mean: float
    stderr: float
    per_token: npt.NDArray[np.float64]
    best_logprobs: npt.NDArray[np.float64]
    best: IntArray


@dataclass(frozen=True)
class Estimator:
    """Combines the log-probabilities of one text into an estimate.

    Attributes:
        sheet: batch that yields the `[m]` log-probabilities.
        places: `[m]` int64, index of each one's token in the completion.
        weights: `[m]` float64, the estimate is the weighted sum.
        draws: `[m]` int64, each one's draw, or `COMMON`.
        num_draws: number of draws; 0 if nothing is random.
    """

    sheet: ScoringBatch
    places: IntArray
    weights: npt.NDArray[np.float64]
    draws: IntArray
    num_draws: int

    def terms(self, logprobs: Tensor, length: int) -> Tensor:
        """`[length]` float64, each token's contribution to the estimate, from `logprobs [m]`."""
        weighted = logprobs * torch.from_numpy(self.weights).to(logprobs.device)
        return logprobs.new_zeros(length).index_add(0, _on(self.places, logprobs), weighted)

    def scored(self, measured: npt.NDArray[np.float64], length: int) -> Scored:
        """The estimate from the `[3, m]` of `TokenScorer.measure`, for a completion of `length` tokens."""
        logprobs = torch.from_numpy(measured[0])
        terms = self.terms(logprobs, length)
        best_logprobs, best = np.full(length, np.nan), np.full(length, -1)
        if len(self.places) == length and (self.weights == 1.0).all():
            best_logprobs[self.places], best[self.places] = measured[1], measured[2]
        return Scored(float(terms.sum()), self.stderr(logprobs), terms.numpy(), best_logprobs, best)

    def stderr(self, logprobs: Tensor) -> float:
        """Standard error of the estimate (see `TokenScores`)."""
        if self.num_draws < 2:
            return math.nan if self.num_draws else 0.0
        drawn = self.draws != COMMON
        values = logprobs.detach()[torch.from_numpy(drawn).to(logprobs.device)]
        weights = torch.from_numpy(self.weights[drawn]).to(logprobs.device) * self.num_draws
        each = logprobs.new_zeros(self.num_draws).index_add(0, _on(self.draws[drawn], logprobs), values * weights)
        return float(each.std()) / math.sqrt(self.num_draws)


def _on(index: IntArray, like: Tensor) -> Tensor:
    return torch.from_numpy(index).to(like.device)
