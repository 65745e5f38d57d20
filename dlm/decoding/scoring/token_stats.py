"""Per-token statistics that can be recorded: the log-probability when drawn, and the entropy.

Sums are computed row by row on the device, and their logarithms on the host, whose bits do not depend on an element's
position in the array (torch's do).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]

NUM_STATS = 2
"""Rows of the output of `stats_of`: log-probabilities when drawn, entropies."""


def entropy_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over v of e_v and of e_v (l_v - max), `[rows]` each, with e_v = exp(l_v - max); `logits [rows, vocab]` are
    not modified."""
    shifted = logits - logits.amax(-1, keepdim=True)
    weights = shifted.exp()
    shifted.masked_fill_(weights == 0, 0.0)  # 0 * -inf
    total = weights.sum(-1)
    return total, shifted.mul_(weights).sum(-1)


def draw_sums(warm: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of exp(l_v - max) over v other than the token, and max - l_token, `[rows]` each, for `tokens [rows]` drawn
    from the logits `warm [rows, vocab]`, which are overwritten."""
    at = tokens.unsqueeze(1)
    best = warm.amax(-1, keepdim=True)
    gap = (best - warm.gather(1, at)).squeeze(1)
    return warm.scatter_(1, at, -torch.inf).sub_(best).exp_().sum(-1), gap


def stats_of(others: Floats, gap: Floats, total: Floats, moment: Floats) -> Floats:
    """`[2, rows]`: log-probabilities, and entropies in nats, from the outputs of `draw_sums` and `entropy_sums`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = 0.0 - np.logaddexp(0.0, np.log(others) + gap)
    return np.stack((drawn, np.maximum(np.log(total) - moment / total, 0.0)))
