"""Attention as it is defined, for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm.models.attention.kv_retention import lower_right
from dlm.models.attention.packed import PackedAttention


class NaiveAttention(PackedAttention):
    """softmax(q k / sqrt(head_dim)) v, segment by segment: slow, and what the other backends are held to."""

    name = "naive"

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.store(layer, query, key, value)
        output = torch.zeros_like(query)
        group = query.shape[1] // key.shape[1]
        for segment in self.segments:
            window = slice(segment.row, segment.row + segment.rows)
            k, v = key[window], value[window]
            if segment.key_start is not None:
                span = slice(segment.key_start, segment.key_start + segment.num_keys)
                k, v = keys[span], values[span]
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            scores = torch.einsum("qhd,khd->hqk", query[window], k) * query.shape[2] ** -0.5
            if segment.causal:
                scores = scores.masked_fill(~lower_right(segment.rows, len(k), k.device), -torch.inf)
            output[window] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        return output
