"""Activation functions of which an element's bits do not depend on its place.

ATen computes `silu` and `sigmoid` in vectors, and what is left at the end of a tensor, or of a thread's share of it,
one by one with another exponential. Its `exp` treats all alike, and what else is needed is exactly rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor


def placeless_gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, element by element; half precision is computed in float32, and `silu` rounded first."""
    wide = gate if gate.dtype == torch.float64 else gate.float()
    below = torch.neg(wide).exp_().add_(1)
    return torch.div(wide, below, out=below).to(gate.dtype).mul_(up)


def placeless_sigmoid(x: Tensor) -> Tensor:
    """The logistic function in the dtype of `x`, which is at least float32."""
    return torch.neg(x).exp_().add_(1).reciprocal_()
