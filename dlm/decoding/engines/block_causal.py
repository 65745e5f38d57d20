"""Engines for models trained so that a block sees earlier blocks and itself: exact caching, nothing is approximate.

A finished block's keys and values come from one more pass over its final tokens. That pass, and the prompt's, ride in
the forward of the next block's first step, as windows of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from dlm.decoding.engines.base import Engine
from dlm.decoding.types import CanvasState, Plan, Window
from dlm.models.architecture import AttentionKind


@dataclass(frozen=True)
class BlockCausal(Engine):
    """The active block against all earlier ones; the canvas ends with it (LLaDA2, SDAR)."""

    name: ClassVar[str] = "block_causal"
    attention: ClassVar[AttentionKind] = "block_causal"
    blocks_from_zero: ClassVar[bool] = True

    def slots(self, canvas: CanvasState) -> int:
        return canvas.length

    def shared(self, canvas: CanvasState) -> int:
        return canvas.blocks[0].start

    def plan(self, canvas: CanvasState) -> Plan:
        size, start, stop = canvas.params.block_length, canvas.block_start, canvas.block_stop
        edges = [(at, at + size) for at in range(canvas.committed, start, size)]
        windows = tuple(Window(first, last, first, last) for first, last in (*edges, (start, stop)))
        return Plan(windows, phase="refresh" if edges else "reuse")


@dataclass(frozen=True)
class CausalCommit(Engine):
    """As `BlockCausal` for models that see what lies before the block causally, each token the earlier ones alone.

    The pass that keeps a finished block predicts the token behind it, which becomes the next block's first token, so it
    goes alone (Nemotron-Labs-Diffusion with `causal_context`). Blocks count from the end of the prompt.
    """

    name: ClassVar[str] = "causal_commit"
    attention: ClassVar[AttentionKind] = "causal_context"

    def slots(self, canvas: CanvasState) -> int:
        return canvas.length

    def shared(self, canvas: CanvasState) -> int:
        """All but the last token, which is fed for what it predicts."""
        return max(0, canvas.blocks[0].start - 1)

    def least_forwards(self, canvas: CanvasState, masks: int) -> int:
        return min(masks, 2)

    def plan(self, canvas: CanvasState) -> Plan:
        start, stop = canvas.block_start, canvas.block_stop
        block = Window(start, stop, start, stop)
        if canvas.committed == start:
            return Plan((block,), phase="reuse")
        commit = self.commit(canvas)
        if canvas.tokens[start] != canvas.mask_id:
            return Plan((*commit, block), phase="refresh")
        return Plan(commit, first_only=True, shifted=True, phase="refresh")

    def commit(self, canvas: CanvasState) -> tuple[Window, ...]:
        """The causal pass up to the block's start. What samples share goes as a window of its own, so that the rest has
        the same shape, and the same bits, whether that was taken over or not."""
        shared, start = self.shared(canvas), canvas.block_start
        cuts = sorted({canvas.committed, max(canvas.committed, min(shared, start)), start})
        return tuple(Window(a, b, a, b, causal=True) for a, b in pairwise(cuts))


@dataclass(frozen=True)
class Autoregressive(CausalCommit):
    """`CausalCommit` in blocks of one: each forward feeds the last token and gives the next (`ar_generate`)."""

    name: ClassVar[str] = "autoregressive"
    fixed_block: ClassVar[int | None] = 1


@dataclass(frozen=True)
class LinearSpec(CausalCommit):
    """Goes with the sampler of the same name: a forward that drafts the next `block_length` positions at once, then a
    causal one over the drafts, whose keys and values stay as far as it agrees (Nemotron's `linear_spec_generate`).

    That one writes over all keys and values of the draft, so that what drafts, a LoRA adapter too, decides how many
    forwards it takes and never a token.
    """

    name: ClassVar[str] = "linear_spec"
    one_block: ClassVar[bool] = True

    def plan(self, canvas: CanvasState) -> Plan:
        first, known = canvas.block_start, canvas.committed
        if known < first and canvas.tokens[first] == canvas.mask_id:
            return Plan(self.commit(canvas), shifted=True, phase="refresh", first_only=True)
        stop = min(known + canvas.params.block_length, canvas.length)
        drafting = (canvas.tokens[known + 1 : stop] == canvas.mask_id).any()
        if drafting:
            draft = Window(known, stop, known, stop, drafts=True)
            return Plan((draft,), phase="reuse", reads=(known + 1, stop))
        window = Window(known, stop, known, stop, causal=True)
        return Plan((window,), shifted=True, phase="refresh", reads=(known + 1, min(stop + 1, canvas.length)))

    def committed(self, canvas: CanvasState) -> int:
        """The last token that a causal pass has chosen: its keys and values come with the next draft."""
        if canvas.plan.phase == "reuse":
            return canvas.committed
        masks = np.flatnonzero(canvas.tokens == canvas.mask_id)
        return int(masks[0]) - 1 if len(masks) else canvas.length - 1
