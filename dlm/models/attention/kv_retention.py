"""Masks and thinning of keys: the tensor side of `segments.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.models.attention.segments import Retain


def thinned(query: Tensor, key: Tensor, value: Tensor, retain: Retain) -> tuple[Tensor, Tensor]:
    """The keys and values of a window's rows outside the block that matter most to it.

    A position's score is the mean over heads of (mean query of the block) . key, max-pooled over its neighbours among
    the positions outside (Sparse-dLLM, arXiv 2508.02558).

    Args:
        query: `[rows, heads, head_dim]`, rotated.
        key, value: `[rows, kv_heads, head_dim]`.
        retain: the block, and how many stay.

    Returns:
        Keys and values `[retain.count, kv_heads, head_dim]`, best first.
    """
    before = torch.arange(retain.start, device=key.device)
    outside = torch.cat((before, torch.arange(retain.stop, key.shape[0], device=key.device)))
    kv_heads = key.shape[1]
    mean = query[retain.start : retain.stop].mean(0).view(kv_heads, -1, query.shape[2]).mean(1)
    key, value = key[outside], value[outside]
    scores = (key * mean).sum(-1).t()
    if not retain.per_head:
        scores = scores.mean(0, keepdim=True)
    if retain.pool > 1:
        scores = F.max_pool1d(scores.unsqueeze(0), retain.pool, stride=1, padding=retain.pool // 2).squeeze(0)
    kept = scores.topk(retain.count, dim=-1).indices.expand(kv_heads, -1).t()
    at = kept.unsqueeze(-1).expand(-1, -1, key.shape[2])
    return key.gather(0, at), value.gather(0, at)


def lower_right(rows: int, num_keys: int, device: torch.device) -> Tensor:
    """`[rows, num_keys]` bool: row i sees the keys up to num_keys - rows + i."""
    return torch.ones(rows, num_keys, dtype=torch.bool, device=device).tril(num_keys - rows)
