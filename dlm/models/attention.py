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
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.errors import MissingExtraError
from dlm.models.backbone import Attention


@dataclass(frozen=True)
class Segment:
    """One window inside a packed batch.

    Attributes:
        row: first row of the window in the batch.
        rows: length of the window.
        slot: arena slot to which the window's first key and value go; None keeps nothing.
        key_start: first arena slot that the window attends to; None attends to the window's own keys.
        num_keys: how many keys it attends to (`rows` when `key_start` is None).
    """

    row: int
    rows: int
    slot: int | None = None
    key_start: int | None = None
    num_keys: int = 0


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

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the windows' keys and values into the arena; returns the layer's arena."""
        if self.keys is None or self.values is None:
            return key, value
        keys, values = self.keys[layer], self.values[layer]
        for segment in self.segments:
            if segment.slot is not None:
                rows = slice(segment.row, segment.row + segment.rows)
                slots = slice(segment.slot, segment.slot + segment.rows)
                keys[slots] = key[rows]
                values[slots] = value[rows]
        return keys, values


@dataclass(frozen=True)
class Run:
    """`count` consecutive segments of equal shape whose arena ranges start `stride` slots apart."""

    first: Segment
    count: int
    stride: int


def equal_runs(segments: Sequence[Segment]) -> list[Run]:
    """Join neighbouring segments that one batched attention call can take without a copy."""
    runs: list[Run] = []
    for segment in segments:
        if runs:
            run = runs[-1]
            alike = (run.first.rows, run.first.num_keys) == (segment.rows, segment.num_keys)
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
        keys, values = self.store(layer, key, value)
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
            attended = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), enable_gqa=heads != kv_heads
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
        keys, values = self.store(layer, key, value)
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
            output[window] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        return output


@dataclass(frozen=True)
class VarlenIndices:
    """What the kernels need to know of the segments, on the device; the same for every layer.

    Attributes:
        kept_rows, kept_slots: rows whose keys and values are kept, and where.
        own: cumulative lengths of the windows that attend to themselves.
        cached_queries, cached_keys: cumulative lengths of the windows that attend to the arena, and of their keys.
        gather: arena slots of those keys, laid end to end.
    """

    kept_rows: Tensor
    kept_slots: Tensor
    own: Tensor
    cached_queries: Tensor
    cached_keys: Tensor
    gather: Tensor

    @classmethod
    def build(cls, own: Sequence[Segment], cached: Sequence[Segment], device: torch.device) -> VarlenIndices:
        kept = [(s.row, s.slot, s.rows) for s in (*own, *cached) if s.slot is not None]
        return cls(
            kept_rows=_spans([(row, rows) for row, _, rows in kept], device),
            kept_slots=_spans([(slot, rows) for _, slot, rows in kept], device),
            own=_cumulative([s.rows for s in own], device),
            cached_queries=_cumulative([s.rows for s in cached], device),
            cached_keys=_cumulative([s.num_keys for s in cached], device),
            gather=_spans([(s.key_start or 0, s.num_keys) for s in cached], device),
        )


class VarlenAttention(PackedAttention):
    """Variable-length flash attention on CUDA: one kernel for windows that attend to themselves, one for windows that
    attend to arena ranges, whose keys and values are gathered without padding first.

    Segments that attend to themselves must come first (`packing_order` sorts so).
    """

    name = "varlen"

    def __init__(self, segments: Sequence[Segment], keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__(segments, keys, values)
        kernel = varlen_kernel()
        if kernel is None:
            raise MissingExtraError("flash-attn", "flash", "variable-length attention on this torch")
        self.kernel = kernel
        self.own = [s for s in self.segments if s.key_start is None]
        self.cached = [s for s in self.segments if s.key_start is not None]
        self.indices: VarlenIndices | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.indices is None:
            self.indices = VarlenIndices.build(self.own, self.cached, query.device)
        index = self.indices
        output = torch.zeros_like(query)
        if self.keys is not None and self.values is not None and len(index.kept_rows):
            self.keys[layer].index_copy_(0, index.kept_slots, key.index_select(0, index.kept_rows))
            self.values[layer].index_copy_(0, index.kept_slots, value.index_select(0, index.kept_rows))
        first_cached = sum(s.rows for s in self.own)
        if self.own:
            rows = slice(0, first_cached)
            longest = max(s.rows for s in self.own)
            output[rows] = self.kernel(query[rows], key[rows], value[rows], index.own, index.own, longest, longest)
        if self.cached and self.keys is not None and self.values is not None:
            rows = slice(first_cached, self.tokens)
            output[rows] = self.kernel(
                query[rows],
                self.keys[layer].index_select(0, index.gather),
                self.values[layer].index_select(0, index.gather),
                index.cached_queries,
                index.cached_keys,
                max(s.rows for s in self.cached),
                max(s.num_keys for s in self.cached),
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


VarlenKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


@cache
def varlen_kernel() -> VarlenKernel | None:
    """torch's own variable-length kernel, else that of the package `flash-attn`, else None."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        kernel: VarlenKernel = importlib.import_module("torch.nn.attention.varlen").varlen_attn
        return kernel
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


def packing_order(rows: int, num_keys: int, key_start: int | None) -> tuple[bool, int, int, int]:
    """Sort key for windows: those attending to themselves first, then by shape and address, so that runs form."""
    return (key_start is not None, rows, num_keys, -1 if key_start is None else key_start)
