"""Windows inside a packed batch: which rows form them, what they attend to, and which of their keys are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Retain:
    """Which keys outside a block stay (Sparse-dLLM, arXiv 2508.02558).

    Attributes:
        start, stop: the block's rows inside the window.
        count: how many of the other rows stay.
        pool: scores are max-pooled over so many neighbours, odd.
        per_head: each key/value head keeps its own positions; otherwise all keep the same.
    """

    start: int
    stop: int
    count: int
    pool: int
    per_head: bool


@dataclass(frozen=True)
class Segment:
    """One window inside a packed batch.

    Attributes:
        row: first row of the window in the batch.
        rows: length of the window.
        slot: arena slot to which the window's first key and value go; None keeps nothing.
        key_start: first arena slot that the window attends to; None attends to the window's own keys.
        num_keys: how many keys it attends to (`rows` when `key_start` is None).
        causal: the last row sees all keys, the one before it all but one, and so on.
        retain: of the window's own keys keep those outside the block that matter to it; they go to `slot`.
    """

    row: int
    rows: int
    slot: int | None = None
    key_start: int | None = None
    num_keys: int = 0
    causal: bool = False
    retain: Retain | None = None


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
    outside = torch.cat((torch.arange(retain.start), torch.arange(retain.stop, key.shape[0]))).to(key.device)
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


def packing_order(segment: Segment) -> tuple[bool, bool, int, int, int]:
    """Sort key for windows: those attending to themselves first, then by shape and address, so that runs form."""
    start = -1 if segment.key_start is None else segment.key_start
    return (start >= 0, segment.causal, segment.rows, segment.num_keys, start)
