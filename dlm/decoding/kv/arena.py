"""KV cache arena: one tensor `[layers, slots, kv_heads, head_dim]` each for keys and values, allocated in ranges."""

from __future__ import annotations

import bisect

import torch
from torch import Tensor


class Ranges:
    """First-fit allocation of `[start, start + length)` out of `[0, capacity)`; knows no tensors."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free: list[tuple[int, int]] = [(0, capacity)] if capacity else []
        self._taken: dict[int, int] = {}

    @property
    def num_taken(self) -> int:
        """Slots in use."""
        return sum(self._taken.values())

    def take(self, length: int) -> int | None:
        """Allocate `length` slots; returns the start of the range, or None if no gap is that long."""
        for index, (start, size) in enumerate(self._free):
            if size >= length:
                self._free[index : index + 1] = [(start + length, size - length)] if size > length else []
                self._taken[start] = length
                return start
        return None

    def give_back(self, start: int) -> int:
        """Free the range that starts at `start`, merging it with its free neighbours; returns its length."""
        length = self._taken.pop(start)
        index = bisect.bisect_left(self._free, (start, 0))
        self._free.insert(index, (start, length))
        for left in (index, index - 1):
            if 0 <= left < len(self._free) - 1:
                (a, n), (b, m) = self._free[left], self._free[left + 1]
                if a + n == b:
                    self._free[left : left + 2] = [(a, n + m)]
        return length


class Arena:
    """The ranges and their tensors, which are allocated with the first range.

    Args:
        layers, kv_heads, head_dim: shape of a slot.
        capacity: number of slots.
        dtype, device: of keys and values.
        poison: fill freed ranges with NaN, to expose stale reads (tests).

    Attributes:
        spare: a slot after the ranges for padding rows; its contents are always finite.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        poison: bool = False,
    ) -> None:
        self.ranges = Ranges(capacity)
        self.poison = poison
        self.spare = capacity
        self._shape = (layers, capacity + 1, kv_heads, head_dim)
        self._dtype, self._device = dtype, device
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def take(self, length: int) -> int | None:
        """Allocate `length` slots; returns the start of the range, or None if there is no room now."""
        if self.keys is None:
            self.keys = torch.empty(self._shape, dtype=self._dtype, device=self._device)
            self.values = torch.empty(self._shape, dtype=self._dtype, device=self._device)
            if self.poison:
                self.keys.fill_(torch.nan)
                self.values.fill_(torch.nan)
            self.keys[:, self.spare] = self.values[:, self.spare] = 0
        return self.ranges.take(length)

    def give_back(self, start: int) -> None:
        """Free the range that starts at `start`."""
        length = self.ranges.give_back(start)
        if self.poison and self.keys is not None and self.values is not None:
            self.keys[:, start : start + length] = torch.nan
            self.values[:, start : start + length] = torch.nan
