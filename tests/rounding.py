"""How far apart two computations of one number may be, each rounding in its own order, as a share of what is summed.

A sum of n terms in any order is off by at most n units in the last place of the sum of their absolute values (Higham,
Accuracy and Stability of Numerical Algorithms, 4.2), and what follows passes that on. So the bounds are those of every
processor and library; what a test is there to find is far beyond them.
"""

from __future__ import annotations

import torch

from dlm.models.architecture import BackboneConfig


def of_products(dtype: torch.dtype, *terms: int) -> float:
    """Of products one after the other, each a sum of so many terms, kept in float32 at least and rounded to `dtype`."""
    unit = torch.finfo(dtype).eps
    return sum(unit + count * min(unit, torch.finfo(torch.float32).eps) for count in terms)


def of_a_forward(config: BackboneConfig, dtype: torch.dtype, keys: int) -> float:
    """Of log-probabilities, from the embedding of a token that sees `keys` positions."""
    hidden, experts = config.hidden_size, config.experts
    inner = config.intermediate_size
    if experts is not None:
        inner = max(inner, experts.top_k * experts.inner_size + experts.shared_size)
    heads = config.num_heads * config.head_dim
    layer = (hidden, hidden, config.head_dim, keys, keys, heads, hidden, hidden, inner)
    return of_products(dtype, *layer * config.num_layers, hidden, hidden, config.vocab_size)
