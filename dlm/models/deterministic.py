"""The same bits for a row whatever else is in the batch, in half precision too; meant for GPUs, tried on CPUs.

Matrix products choose their algorithm by the number of rows, and with it the order of their sums. Here every product
has the same number of rows: a batch is cut into tiles, the last one filled up with zeros. (In float32 and float64 a CPU
gives this for any multiple of `ROW_TILE`, and needs none of it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlm.errors import ConfigError
from dlm.models.attention import Run, SdpaAttention
from dlm.models.backbone import Backbone, Layer
from dlm.models.drafter import LowRank
from dlm.models.experts import Experts, Router
from dlm.models.lora import adapter_of
from dlm.models.segments import Segment

CPU_TILE, CUDA_TILE = 32, 256
"""Rows of every product: a CPU pays for rows that are filled up, a GPU for reading weights once a tile."""


def tiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None, tile: int) -> Tensor:
    """`x [rows, in]` times `weight [out, in]`, `[rows, out]`, as products of exactly `tile` rows each."""
    rows = x.shape[0]
    x = F.pad(x, (0, 0, 0, -rows % tile))
    parts = [F.linear(part, weight, bias) for part in torch.split(x, tile)]
    return torch.cat(parts)[:rows] if parts else x.new_zeros(0, weight.shape[0])


class TiledLinear(nn.Linear):
    """A linear layer computed in tiles."""

    tile: int

    def forward(self, input: Tensor) -> Tensor:
        return tiled_linear(input, self.weight, self.bias, self.tile)


class TiledRouter(Router):
    """A router whose product is computed in tiles."""

    tile: int

    def logits(self, x: Tensor) -> Tensor:
        return tiled_linear(x, self.weight.to(x.dtype), None, self.tile)


class TiledExperts(Experts):
    """Experts whose products are computed in tiles, expert by expert."""

    tile: int

    def routed_linear(self, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        outputs, start = [], 0
        for expert, end in enumerate(ends.tolist()):
            if end > start:
                outputs.append(tiled_linear(x[start:end], weight[expert], None, self.tile))
            start = end
        return torch.cat(outputs)


TILED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: TiledLinear, Router: TiledRouter, Experts: TiledExperts}


def deterministic_copy(backbone: Backbone) -> Backbone:
    """The same weights, not copied, in a model that computes in tiles. Raises `ConfigError` for one whose adapter is in
    training."""
    if adapter_of(backbone) is not None:
        raise ConfigError("decoder.deterministic=true does not go with an adapter in training; decode with a copy")
    tile = CUDA_TILE if backbone.device.type == "cuda" else CPU_TILE
    with torch.device("meta"):
        copy = Backbone(backbone.config)
    for ours, theirs in zip(copy.layers, backbone.layers, strict=True):
        assert isinstance(ours, Layer)  # a ModuleList does not say what it holds
        assert isinstance(theirs, Layer)  # likewise
        ours.total = theirs.total
        for name, part in theirs.drafter.items():
            assert isinstance(part, LowRank)  # nor does a ModuleDict
            ours.drafter[name] = LowRank(part.down.weight, part.up.weight)
    copy.load_state_dict(backbone.state_dict(), assign=True)
    copy.rotary = backbone.rotary
    for module in copy.modules():
        tiled = TILED.get(type(module))
        if tiled is not None:
            module.__class__ = tiled
            cast(TiledLinear, module).tile = tile
    return copy.eval().requires_grad_(False)


class SeparateAttention(SdpaAttention):
    """`scaled_dot_product_attention` for each window alone: its shape is then that of the window."""

    name = "separate"

    def __init__(self, segments: Sequence[Segment], keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__(segments, keys, values)
        self.runs = [Run(segment, 1, 0) for segment in self.segments]
