"""Shares a prompt's keys and values among its samples if they do not depend on the answer (block-causal engines).

The first sample computes them; a copy stays in the arena until the last sample has started. The copy has the same bits
that each sample would compute.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlm.decoding.canvas import Canvas
from dlm.decoding.kv.arena import Arena
from dlm.decoding.request import Request


@dataclass
class _Shared:
    """One prompt's keys and values.

    Attributes:
        slot, length: their arena range.
        ready: the first sample has computed them.
        left: samples that have not started.
    """

    slot: int
    length: int
    ready: bool
    left: int


class PromptSharing:
    """Manages the shared prompts of an arena.

    Args:
        arena: holds them and the canvases.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._kept: dict[int, _Shared] = {}

    def length(self, canvas: Canvas) -> int:
        """Number of positions that the canvas shares with other samples of its request; 0 for none.

        A request that would not fit into the arena with its copy does not share.
        """
        engine, params = canvas.request.engine, canvas.request.params
        length = 0 if params.n == 1 or canvas.guided else engine.shared(canvas)
        return length if length + engine.slots(canvas) <= self.arena.ranges.capacity else 0

    def must_wait(self, canvas: Canvas) -> bool:
        """Whether the first sample is still computing the keys and values that this one will use."""
        kept = self._kept.get(id(canvas.request))
        return kept is not None and not kept.ready

    def begin(self, canvas: Canvas) -> bool:
        """Start a canvas that has its range: copy the shared part, or reserve room for it; False if there is none."""
        length, key = self.length(canvas), id(canvas.request)
        if not length:
            return True
        kept = self._kept.get(key)
        if kept is None:
            slot = self.arena.take(length)
            if slot is None:
                return False
            self._kept[key] = _Shared(slot, length, False, canvas.request.params.n - 1)
            return True
        self._copy(kept.slot, self._slot(canvas), kept.length)
        canvas.inherit(kept.length)
        kept.left -= 1
        if not kept.left:
            self.forget(canvas.request)
        return True

    def computed(self, canvas: Canvas) -> None:
        """After a forward: the first sample's first forward has computed the part that later samples use."""
        kept = self._kept.get(id(canvas.request))
        if kept is not None and not kept.ready:
            self._copy(self._slot(canvas), kept.slot, kept.length)
            kept.ready = True

    def forget(self, request: Request) -> None:
        """Free the copy kept for a request, if any."""
        kept = self._kept.pop(id(request), None)
        if kept is not None:
            self.arena.give_back(kept.slot)

    def forget_all(self) -> None:
        """Free all copies."""
        for kept in self._kept.values():
            self.arena.give_back(kept.slot)
        self._kept.clear()

    @staticmethod
    def _slot(canvas: Canvas) -> int:
        slot = canvas.slots[0]
        if slot is None:
            raise RuntimeError("a canvas without a cache has nothing to share")
        return slot

    def _copy(self, source: int, target: int, length: int) -> None:
        for tensor in (self.arena.keys, self.arena.values):
            if tensor is not None:
                tensor[:, target : target + length] = tensor[:, source : source + length]
