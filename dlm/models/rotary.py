"""Rotary position embedding: tables of cosines and sines by position, plain or stretched by YaRN."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlm.models.architecture import BackboneConfig, YarnConfig


class Rotary(nn.Module):
    """Half-split rotary position embedding (arXiv 2104.09864), with tables in float32 as the released programs have.

    Tables instead of cosines on the fly also keep a row's bits independent of its place in the batch.
    """

    cos: Tensor
    sin: Tensor
    query_scale: Tensor | None

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.dim = config.rotary_dim or config.head_dim
        self.theta, self.max_positions, self.yarn = config.rope_theta, config.max_positions, config.yarn
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.empty(self.max_positions, self.dim // 2), persistent=False)
        scaled = self.yarn is not None and self.yarn.query_beta != 0
        self.register_buffer("query_scale", torch.empty(self.max_positions) if scaled else None, persistent=False)
        self.reset_tables()

    @torch.no_grad()
    def reset_tables(self) -> None:
        """Fill the tables on the device where they are; to be called after `to_empty`."""
        device = self.cos.device
        exponent = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim
        frequency = 1.0 / (self.theta**exponent)
        magnitude = 1.0
        if self.yarn is not None:
            frequency = stretched(frequency, self.theta, self.yarn)
            magnitude = _mscale(self.yarn.factor, self.yarn.mscale) / _mscale(
                self.yarn.factor, self.yarn.mscale_all_dim
            )
        positions = torch.arange(self.max_positions, device=device, dtype=torch.float32)
        angle = torch.outer(positions, frequency)
        self.cos.copy_(angle.cos() * magnitude)
        self.sin.copy_(angle.sin() * magnitude)
        if self.yarn is not None and self.query_scale is not None:
            periods = torch.floor(positions / self.yarn.original_positions)
            self.query_scale.copy_(1 + self.yarn.query_beta * torch.log(1 + periods))

    def gather(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of `positions [rows]`, each `[rows, 1, rotary_dim / 2]` in `dtype`."""
        return self.cos[positions].to(dtype).unsqueeze(1), self.sin[positions].to(dtype).unsqueeze(1)

    def gather_query_scale(self, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Factors on the queries at `positions [rows]`, `[rows, 1, 1]` in `dtype`; None where there are none."""
        return None if self.query_scale is None else self.query_scale[positions].to(dtype).view(-1, 1, 1)


def stretched(frequency: Tensor, theta: float, yarn: YarnConfig) -> Tensor:
    """Frequencies `[dims]` after YaRN: fast dimensions as they are, slow ones divided by the factor, a linear ramp
    between (section 3.2 of arXiv 2309.00071, the bounds rounded outwards as the released programs do)."""
    dims = len(frequency)

    def dim_of(rotations: float) -> float:
        return dims * math.log(yarn.original_positions / (rotations * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(dim_of(yarn.beta_fast)), 0)
    high = min(math.ceil(dim_of(yarn.beta_slow)), 2 * dims - 1)
    place = torch.arange(dims, device=frequency.device, dtype=torch.float32)
    ramp = ((place - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency / yarn.factor * ramp + frequency * (1 - ramp)


def _mscale(factor: float, exponent: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * exponent * math.log(factor) + 1.0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading dimensions of `x [rows, heads, head_dim]` for which there are cosines, in the dtype of `cos`,
    and cast back."""
    turned = 2 * cos.shape[-1]
    if turned == x.shape[-1]:
        low, high = x.to(cos.dtype).chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)
    low, high = x[..., :turned].to(cos.dtype).chunk(2, dim=-1)
    parts = (low * cos - high * sin, high * cos + low * sin, x[..., turned:].to(cos.dtype))
    return torch.cat(parts, dim=-1).to(x.dtype)
