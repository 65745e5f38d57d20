"""The masked-diffusion loss.

Training masks some tokens of an answer and predicts them: with `x_t` the canvas in which each answer token was
masked with probability `t`, the objective of LLaDA (arXiv 2502.09992, equation 3) is

    - E_{t, x_0, x_t} [ 1/t * sum_i 1[x_t_i = mask] log p(x_0_i | x_t) ] / answer length

Its weight of `1/t` makes single tokens of nearly clean canvases dominate small batches. The two choices here are the
plain mean over masked tokens (`uniform`) and `1/(t + 0.3)`, bounded and divided by its own sum (`inverse`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.errors import ConfigError

INVERSE_OFFSET = 0.3


def token_weights(weighting: str, mask_ratio: Tensor) -> Tensor:
    """Weights that sum to 1.

    Args:
        weighting: `uniform` or `inverse`.
        mask_ratio: `[masked]`, the `t` of each masked token's canvas.

    Returns:
        `[masked]` float32.

    Raises:
        ConfigError: the weighting is unknown.
    """
    if weighting == "uniform":
        weights = torch.ones_like(mask_ratio)
    elif weighting == "inverse":
        weights = 1.0 / (mask_ratio + INVERSE_OFFSET)
    else:
        raise ConfigError(f"loss weighting {weighting!r} is unknown; choose uniform or inverse")
    return weights / weights.sum()


def masked_diffusion_loss(logits: Tensor, targets: Tensor, mask_ratio: Tensor, weighting: str = "uniform") -> Tensor:
    """Weighted cross entropy of the masked tokens, in float32.

    Args:
        logits: `[masked, vocab]`.
        targets: `[masked]` int64, the hidden tokens.
        mask_ratio: `[masked]` float32 in (0, 1].
        weighting: `uniform` or `inverse`.
    """
    each = F.cross_entropy(logits.float(), targets, reduction="none")
    return (each * token_weights(weighting, mask_ratio)).sum()
