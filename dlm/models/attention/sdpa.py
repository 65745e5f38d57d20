"""Attention by `scaled_dot_product_attention`: a call a window on a CPU, and the fallback elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.models.arithmetic import aligned
from dlm.models.attention.kv_retention import lower_right
from dlm.models.attention.packed import PackedAttention
from dlm.models.attention.segments import Segment


@dataclass(frozen=True)
class SegmentRun:
    """`count` consecutive segments of equal shape whose arena ranges start `stride` slots apart."""

    first: Segment
    count: int
    stride: int


def equal_runs(segments: Sequence[Segment]) -> list[SegmentRun]:
    """Join neighbouring segments that one batched attention call can take without a copy."""
    runs: list[SegmentRun] = []
    for segment in segments:
        if runs:
            run = runs[-1]
            shape = (run.first.rows, run.first.num_keys, run.first.causal)
            alike = shape == (segment.rows, segment.num_keys, segment.causal)
            if alike and run.first.key_start is None and segment.key_start is None:
                runs[-1] = SegmentRun(run.first, run.count + 1, 0)
                continue
            if alike and run.first.key_start is not None and segment.key_start is not None:
                last = run.first.key_start + (run.count - 1) * run.stride
                step = segment.key_start - last
                if (step > 0 and run.count == 1) or step == run.stride:
                    runs[-1] = SegmentRun(run.first, run.count + 1, step)
                    continue
        runs.append(SegmentRun(segment, 1, 0))
    return runs


class SdpaAttention(PackedAttention):
    """`scaled_dot_product_attention` on views of the packed batch and of the arena, one call for all windows of equal
    shape that lie evenly, whatever that does to their bits."""

    name = "sdpa"

    @cached_property
    def runs(self) -> list[SegmentRun]:
        """The calls to make."""
        return equal_runs(self.segments)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.store(layer, query, key, value)
        heads, kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[2]
        outputs = []
        for run in self.runs:
            count, rows, row = run.count, run.first.rows, run.first.row
            window = slice(row, row + count * rows)
            q = query[window].view(count, rows, heads, head_dim)
            if run.first.key_start is None:
                k = key[window].view(count, rows, kv_heads, head_dim)
                v = value[window].view(count, rows, kv_heads, head_dim)
            else:
                k = _ranges(keys, run)
                v = _ranges(values, run)
            mask = lower_right(rows, k.shape[1], q.device) if run.first.causal else None
            attended = self._attend(q, k, v, mask)
            outputs.append(attended.transpose(1, 2).reshape(count * rows, heads, head_dim))
        spare = query.shape[0] - self.tokens
        if spare:
            outputs.append(query.new_zeros(spare, heads, head_dim))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of `[windows, rows, heads, head_dim]` to `[windows, keys, kv_heads, head_dim]`; heads before rows
        in what comes back."""
        return F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            enable_gqa=query.shape[2] != key.shape[2],
        )


class SeparateAttention(SdpaAttention):
    """A call for each window, in which nothing depends on the others.

    Where windows share a call, torch shares them among its threads, and each thread's scratch memory lies otherwise;
    MKL's products outside its strict mode take other kernels by where their operands lie. No probe of some shapes can
    rule that out.
    """

    name = "separate"

    @cached_property
    def runs(self) -> list[SegmentRun]:
        return [SegmentRun(segment, 1, 0) for segment in self.segments]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return super()._attend(aligned(query), aligned(key), aligned(value), mask)


def _ranges(arena: Tensor, run: SegmentRun) -> Tensor:
    """The key ranges of a run as one view `[count, num_keys, kv_heads, head_dim]` of a layer's arena."""
    start = run.first.key_start or 0
    slot, head, value = arena.stride()
    return arena.as_strided(
        (run.count, run.first.num_keys, arena.shape[1], arena.shape[2]),
        (run.stride * slot, slot, head, value),
        arena.storage_offset() + start * slot,
    )
