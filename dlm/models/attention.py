"""One packed attention call, several backends.

A `Segment` says which rows of the packed batch form one canvas's window and which keys they attend to: the window's
own keys, or a range of the arena into which the window has just been written. Nothing is padded; no row sees another
canvas.

Every backend is an `Attention` made anew for each forward from the same segments:

* `SdpaAttention`: one `scaled_dot_product_attention` per canvas, or per run of canvases of equal shape whose key ranges
  are evenly spaced (views, no copy). The default on CPU and the fallback everywhere.
* `VarlenAttention`: variable-length flash kernels on CUDA, for float16 and bfloat16.
* `NaiveAttention`: the definition written out, for tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.errors import MissingExtraError
from dlm.models.architecture import ROW_TILE
from dlm.models.backbone import Attention
from dlm.models.segments import Segment
from dlm.models.thinning import lower_right, thinned


class PackedAttention:
    """What the backends share: the arena and the writing of windows into it.

    Args:
        segments: the windows, in row order, covering the tokens of the batch without a gap.
        keys, values: the arena, `[layers, slots, kv_heads, head_dim]`; None when no segment needs it.
    """

    def __init__(self, segments: Sequence[Segment], keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.segments = list(segments)
        self.keys, self.values = keys, values
        self.tokens = self.segments[-1].row + self.segments[-1].rows

    def store(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the windows' keys and values into the arena; returns the layer's arena."""
        if self.keys is None or self.values is None:
            return key, value
        keys, values = self.keys[layer], self.values[layer]
        for segment in self.segments:
            if segment.slot is not None:
                rows = slice(segment.row, segment.row + segment.rows)
                own = key[rows], value[rows]
                if segment.retain is not None:
                    own = thinned(query[rows], *own, segment.retain)
                slots = slice(segment.slot, segment.slot + len(own[0]))
                keys[slots], values[slots] = own
        return keys, values


@dataclass(frozen=True)
class Run:
    """`count` consecutive segments of equal shape whose arena ranges start `stride` slots apart."""

    first: Segment
    count: int
    stride: int


def equal_runs(segments: Sequence[Segment]) -> list[Run]:
    """Join neighbouring segments that one batched attention call can take without a copy.

    Only whole row tiles are joined: with several threads a CPU gives windows of other lengths other bits in a batch.
    """
    runs: list[Run] = []
    for segment in segments:
        if runs:
            run = runs[-1]
            shape = (run.first.rows, run.first.num_keys, run.first.causal)
            alike = shape == (segment.rows, segment.num_keys, segment.causal) and segment.rows % ROW_TILE == 0
            if alike and run.first.key_start is None and segment.key_start is None:
                runs[-1] = Run(run.first, run.count + 1, 0)
                continue
            if alike and run.first.key_start is not None and segment.key_start is not None:
                last = run.first.key_start + (run.count - 1) * run.stride
                step = segment.key_start - last
                if (step > 0 and run.count == 1) or step == run.stride:
                    runs[-1] = Run(run.first, run.count + 1, step)
                    continue
        runs.append(Run(segment, 1, 0))
    return runs


class SdpaAttention(PackedAttention):
    """`scaled_dot_product_attention` on views of the packed batch and of the arena."""

    name = "sdpa"

    def __init__(self, segments: Sequence[Segment], keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__(segments, keys, values)
        self.runs = equal_runs(self.segments)

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
            attended = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=heads != kv_heads
            )
            outputs.append(attended.transpose(1, 2).reshape(count * rows, heads, head_dim))
        spare = query.shape[0] - self.tokens
        if spare:
            outputs.append(query.new_zeros(spare, heads, head_dim))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _ranges(arena: Tensor, run: Run) -> Tensor:
    """The key ranges of a run as one view `[count, num_keys, kv_heads, head_dim]` of a layer's arena."""
    start = run.first.key_start or 0
    slot, head, value = arena.stride()
    return arena.as_strided(
        (run.count, run.first.num_keys, arena.shape[1], arena.shape[2]),
        (run.stride * slot, slot, head, value),
        arena.storage_offset() + start * slot,
    )


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


@dataclass(frozen=True)
class VarlenGroup:
    """Consecutive windows that one kernel call takes: all attend to themselves or all to the arena, causally or not.

    Attributes:
        rows: of the packed batch.
        queries, keys: cumulative lengths, on the device.
        gather: arena slots of the keys laid end to end; None where the windows attend to themselves.
        longest_query, longest_keys: for the kernel's launch.
    """

    rows: slice
    queries: Tensor
    keys: Tensor
    gather: Tensor | None
    longest_query: int
    longest_keys: int
    causal: bool

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> VarlenGroup:
        first, last = segments[0], segments[-1]
        lengths = [s.rows if s.key_start is None else s.num_keys for s in segments]
        cached = [(s.key_start, s.num_keys) for s in segments if s.key_start is not None]
        return cls(
            rows=slice(first.row, last.row + last.rows),
            queries=_cumulative([s.rows for s in segments], device),
            keys=_cumulative(lengths, device),
            gather=_spans(cached, device) if cached else None,
            longest_query=max(s.rows for s in segments),
            longest_keys=max(lengths),
            causal=first.causal,
        )


class VarlenAttention(PackedAttention):
    """Variable-length flash attention on CUDA: one kernel for each group of neighbouring windows that attend alike;
    keys and values that lie in the arena are gathered without padding first.

    Segments that attend alike should lie together (`packing_order` sorts so).
    """

    name = "varlen"

    def __init__(self, segments: Sequence[Segment], keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__(segments, keys, values)
        kernel = varlen_kernel()
        if kernel is None:
            raise MissingExtraError("flash-attn", "flash", "variable-length attention on this torch")
        self.kernel = kernel
        self.groups: list[VarlenGroup] | None = None
        self.kept: tuple[Tensor, Tensor] | None = None

    def _prepare(self, device: torch.device) -> list[VarlenGroup]:
        alike = itertools.groupby(self.segments, key=lambda s: (s.key_start is not None, s.causal))
        kept = [(s.row, s.slot, s.rows) for s in self.segments if s.slot is not None and s.retain is None]
        if kept:
            rows, slots = [(row, count) for row, _, count in kept], [(slot, count) for _, slot, count in kept]
            self.kept = _spans(rows, device), _spans(slots, device)
        return [VarlenGroup.of(list(members), device) for _, members in alike]

    def store(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            return key, value
        keys, values = self.keys[layer], self.values[layer]
        if self.kept is not None:
            rows, slots = self.kept
            keys.index_copy_(0, slots, key.index_select(0, rows))
            values.index_copy_(0, slots, value.index_select(0, rows))
        for segment in self.segments:
            if segment.retain is not None and segment.slot is not None:
                window = slice(segment.row, segment.row + segment.rows)
                slots_kept = slice(segment.slot, segment.slot + segment.retain.count)
                own = thinned(query[window], key[window], value[window], segment.retain)
                keys[slots_kept], values[slots_kept] = own
        return keys, values

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.groups is None:
            self.groups = self._prepare(query.device)
        keys, values = self.store(layer, query, key, value)
        output = torch.zeros_like(query)
        for group in self.groups:
            own = key[group.rows], value[group.rows]
            k, v = own if group.gather is None else (keys[group.gather], values[group.gather])
            output[group.rows] = self.kernel(
                query[group.rows],
                k,
                v,
                group.queries,
                group.keys,
                group.longest_query,
                group.longest_keys,
                causal=group.causal,
            )
        return output


def _cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    """`[0, l0, l0 + l1, ...]` int32, as the flash kernels want it."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)


def _spans(spans: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Indices of the spans `(start, length)` laid end to end, int64."""
    parts = [torch.arange(start, start + length) for start, length in spans]
    index = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
    return index.to(device, non_blocking=True)


class VarlenKernel(Protocol):
    """A variable-length attention kernel; causal masks are aligned to the lower right."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Tensor,
        keys: Tensor,
        longest_query: int,
        longest_keys: int,
        /,
        *,
        causal: bool,
    ) -> Tensor:
        """`[rows, heads, head_dim]`."""


def _of_torch(function: Callable[..., Tensor]) -> VarlenKernel:
    """torch's `varlen_attn` under our signature; it writes grouped heads and causality differently between versions."""
    names = inspect.signature(function).parameters

    def kernel(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Tensor,
        keys: Tensor,
        long_q: int,
        long_k: int,
        *,
        causal: bool,
    ) -> Tensor:
        options: dict[str, Any] = {}
        if causal:
            options = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
        if query.shape[1] != key.shape[1]:
            if "enable_gqa" in names:
                options["enable_gqa"] = True
            else:
                group = query.shape[1] // key.shape[1]
                key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        return function(query, key, value, queries, keys, long_q, long_k, **options)

    return kernel


@cache
def varlen_kernel() -> VarlenKernel | None:
    """torch's own variable-length kernel, else that of the package `flash-attn`, else None."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        return _of_torch(importlib.import_module("torch.nn.attention.varlen").varlen_attn)
    if importlib.util.find_spec("flash_attn") is not None:
        flash: VarlenKernel = importlib.import_module("flash_attn").flash_attn_varlen_func
        return flash
    return None


AttentionBackend = Callable[[Sequence[Segment], Tensor | None, Tensor | None], Attention]


def choose_backend(device: torch.device, dtype: torch.dtype) -> type[SdpaAttention] | type[VarlenAttention]:
    """The fastest backend that runs here: flash kernels take half precision on CUDA only."""
    half = dtype in (torch.float16, torch.bfloat16)
    if device.type == "cuda" and half and varlen_kernel() is not None:
        return VarlenAttention
    return SdpaAttention
