"""Variable-length flash attention on CUDA, for float16 and bfloat16."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlm.errors import MissingExtraError
from dlm.models.attention import kernels
from dlm.models.attention.kv_retention import thinned
from dlm.models.attention.packed import PackedAttention
from dlm.models.attention.segments import Segment
from dlm.models.devices import upload


@dataclass(frozen=True)
class VarlenGroup:
    """Consecutive windows that one kernel call takes: all attend to themselves or all to the arena, causally or not.

    Attributes:
        rows: of the packed batch.
        queries: cumulative lengths, `[windows + 1]` int32.
        keys: the same of the keys; where they are read in place the slots at which they begin.
        used: `[windows]` int32, numbers of keys; None unless they are read in place.
        gather: arena slots of the keys laid end to end, int64; None where nothing is gathered.
        longest_query, longest_keys: for the kernel's launch.
    """

    rows: slice
    queries: Tensor
    keys: Tensor
    used: Tensor | None
    gather: Tensor | None
    longest_query: int
    longest_keys: int
    causal: bool

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device, *, in_place: bool) -> VarlenGroup:
        first, last = segments[0], segments[-1]
        ranges = [(s.key_start, s.num_keys) for s in segments if s.key_start is not None]
        lengths = [length for _, length in ranges] or [s.rows for s in segments]
        in_place = in_place and bool(ranges)
        starts = [*(start for start, _ in ranges), sum(ranges[-1])] if in_place else cumulative(lengths)
        return cls(
            rows=slice(first.row, last.row + last.rows),
            queries=upload(np.array(cumulative([s.rows for s in segments]), dtype=np.int32), device),
            keys=upload(np.array(starts, dtype=np.int32), device),
            used=upload(np.array(lengths, dtype=np.int32), device) if in_place else None,
            gather=upload(spans(ranges), device) if ranges and not in_place else None,
            longest_query=max(s.rows for s in segments),
            longest_keys=max(lengths),
            causal=first.causal,
        )


class VarlenAttention(PackedAttention):
    """One kernel for each group of neighbouring windows that attend alike. Keys and values in the arena are read where
    they lie where the kernel can do that, else gathered without padding first.

    Segments that attend alike should lie together (`packing_order` sorts so).
    """

    name = "varlen"

    def __init__(self, segments: Sequence[Segment], keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__(segments, keys, values)
        kernel = kernels.varlen_kernel()
        if kernel is None:
            raise MissingExtraError("flash-attn", "flash", "variable-length attention on this torch")
        self.kernel = kernel
        self.groups: list[VarlenGroup] | None = None
        self.kept: tuple[Tensor, Tensor] | None = None

    def _prepare(self, device: torch.device, dtype: torch.dtype) -> list[VarlenGroup]:
        kept = [s for s in self.segments if s.slot is not None and s.retain is None]
        if kept:
            slots = [(s.slot, s.rows) for s in kept if s.slot is not None]
            self.kept = upload(spans([(s.row, s.rows) for s in kept]), device), upload(spans(slots), device)
        in_place = kernels.reads_in_place(self.kernel, device, dtype)
        alike = itertools.groupby(self.segments, key=lambda s: (s.key_start is not None, s.causal))
        return [VarlenGroup.of(list(members), device, in_place=in_place) for _, members in alike]

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
            self.groups = self._prepare(query.device, query.dtype)
        keys, values = self.store(layer, query, key, value)
        output = torch.zeros_like(query)
        for group in self.groups:
            k, v = key[group.rows], value[group.rows]
            if group.used is not None:
                k, v = keys, values
            elif group.gather is not None:
                k, v = keys[group.gather], values[group.gather]
            output[group.rows] = self.kernel(
                query[group.rows],
                k,
                v,
                group.queries,
                group.keys,
                group.longest_query,
                group.longest_keys,
                causal=group.causal,
                used=group.used,
            )
        return output


def cumulative(lengths: Sequence[int]) -> list[int]:
    """`[0, l0, l0 + l1, ...]`."""
    return [0, *itertools.accumulate(lengths)]


def spans(ranges: Sequence[tuple[int, int]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Indices of the ranges `(start, length)` laid end to end."""
    return np.concatenate([np.arange(start, start + length) for start, length in ranges])
