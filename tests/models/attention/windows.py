"""A small attention to hold models against, written from its definition, and what feeds models with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlm.models.backbone import Backbone
from dlm.models.io.loading import Checkpoint, random_checkpoint

Mask = Callable[[Tensor, Tensor], Tensor]
"""From query positions `[rows, 1]` and key positions `[1, keys]` to who sees whom."""


def everything(query: Tensor, key: Tensor) -> Tensor:
    return (query >= 0) & (key >= 0)


def causal(query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def block_causal(length: int) -> Mask:
    return lambda query, key: query // length >= key // length


class WindowAttention:
    """The definition, window by window: row i of a window sees row j where the mask says so."""

    def __init__(self, lengths: Sequence[int], mask: Mask = everything) -> None:
        self.lengths, self.mask = lengths, mask

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.zeros_like(query)
        group = query.shape[1] // key.shape[1]
        start = 0
        for length in self.lengths:
            rows, place = slice(start, start + length), torch.arange(length)
            k, v = (part[rows].repeat_interleave(group, dim=1).transpose(0, 1) for part in (key, value))
            scores = query[rows].transpose(0, 1) @ k.transpose(1, 2) * query.shape[2] ** -0.5
            seen = self.mask(place.unsqueeze(1), place.unsqueeze(0))
            output[rows] = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1)
            start += length
        return output


@torch.inference_mode()
def logits_of(backbone: Backbone, token_ids: Tensor, mask: Mask = everything) -> Tensor:
    """`[rows, width, vocab]` of `token_ids [rows, width]`, each row a window of its own."""
    rows, width = token_ids.shape
    attention = WindowAttention([width] * rows, mask)
    hidden = backbone(token_ids.flatten(), torch.arange(width).repeat(rows), attention)
    return backbone.head(hidden).view(rows, width, -1)


def shaken(size: str, dtype: str = "float32") -> Checkpoint:
    """A random checkpoint in which no norm is 1 and no bias 0."""
    checkpoint = random_checkpoint(size, seed=3, dtype=dtype)
    generator = torch.Generator().manual_seed(11)
    for parameter in checkpoint.backbone.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter += noise.to(parameter.dtype) * (0.3 if parameter.dim() == 1 else 0.1)
    return checkpoint
