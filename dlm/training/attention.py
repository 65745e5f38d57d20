"""Attention for training batches: each window attends only to its own keys and values, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.models.attention import equal_runs
from dlm.models.attention.segments import Segment


class FreshAttention:
    """`scaled_dot_product_attention` over runs of windows of equal length, in float32 under autocast too.

    Runs are separated by one `split`, whose backward is one concatenation: slicing out each run would allocate a zero
    gradient of the whole batch per run. float32 because bfloat16 attention's backward is slow on CPUs.

    Args:
        segments: windows in row order, covering the batch; adjacent windows of equal length share a call.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.runs = [(run.count, run.first.rows) for run in equal_runs(segments)]

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, head_dim = query.shape
        sizes = [count * length for count, length in self.runs]
        sizes.append(rows - sum(sizes))
        outputs = []
        with torch.autocast(query.device.type, enabled=False):
            parts = zip(*(torch.split(tensor.float(), sizes) for tensor in (query, key, value)), strict=True)
            for (count, length), part in zip(self.runs, parts, strict=False):
                q, k, v = (tensor.view(count, length, -1, head_dim).transpose(1, 2) for tensor in part)
                attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != key.shape[1])
                outputs.append(attended.transpose(1, 2).reshape(-1, heads, head_dim))
        outputs.append(query.new_zeros(sizes[-1], heads, head_dim, dtype=torch.float32))
        return torch.cat(outputs)
