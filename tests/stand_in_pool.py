"""An allocator as CUDA graphs share one: it reuses what is free, and never gives memory back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Pool:
    """Blocks in segments; the smallest free one that is large enough is cut, else there is a new segment.

    Attributes:
        held: bytes of all segments.
    """

    def __init__(self) -> None:
        self.held = 0
        self._segments: list[list[tuple[int, bool]]] = []

    def take(self, size: int) -> tuple[int, int]:
        """Where a block of `size` bytes lies: its segment, and its first byte in it."""
        fitting: list[tuple[int, int, int, int]] = []
        for index, segment in enumerate(self._segments):
            start = 0
            for at, (length, free) in enumerate(segment):
                if free and length >= size:
                    fitting.append((length, index, at, start))
                start += length
        if not fitting:
            self.held += size
            self._segments.append([(size, False)])
            return len(self._segments) - 1, 0
        length, index, at, start = min(fitting)
        rest = [(length - size, True)] if length > size else []
        self._segments[index][at : at + 1] = [(size, False), *rest]
        return index, start

    def give_back(self, place: tuple[int, int]) -> None:
        index, wanted = place
        joined: list[tuple[int, bool]] = []
        start = 0
        for length, free in self._segments[index]:
            free = free or start == wanted
            start += length
            if free and joined and joined[-1][1]:
                joined[-1] = (joined[-1][0] + length, True)
            else:
                joined.append((length, free))
        self._segments[index] = joined


class _Watched(TorchDispatchMode):
    """Takes from a pool what each operation makes, and gives it back when torch lets go of it."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if torch.is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in given:
                storage = leaf.untyped_storage()
                place = self.pool.take(-(-storage.nbytes() // 512) * 512)
                weakref.finalize(storage, self.pool.give_back, place)
        return made


@contextmanager
def watched(pool: Pool) -> Iterator[None]:
    """Whatever torch allocates inside comes from the pool."""
    with _Watched(pool):
        yield
