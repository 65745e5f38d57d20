"""Engines for models trained so that a block sees only earlier blocks and itself: caching is exact.

A finished block's keys and values come from one more pass over its final tokens. That pass, like the prompt's, shares
the forward of the next block's first step, as a separate window.
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
    """Recomputes the active block against all earlier ones; the canvas ends with it (LLaDA2, SDAR)."""

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
    """Like `BlockCausal`, for models whose context before the block is causal: each token sees only earlier ones.

    The pass that commits a finished block also predicts the token after it, which becomes the next block's first token,
    so it runs alone (Nemotron-Labs-Diffusion with `causal_context`). Blocks start at the end of the prompt.
    """

    name: ClassVar[str] = "causal_commit"
    attention: ClassVar[AttentionKind] = "causal_context"

    def slots(self, canvas: CanvasState) -> int:
        return canvas.length

    def shared(self, canvas: CanvasState) -> int:
        """All but the last token, which is fed for its prediction."""
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
        """The causal pass up to the block's start. The shared prompt is a separate window, so the rest has the same
        shape, and the same bits, whether the prompt was reused or not."""
        shared, start = self.shared(canvas), canvas.block_start
        cuts = sorted({canvas.committed, max(canvas.committed, min(shared, start)), start})
        return tuple(Window(a, b, a, b, causal=True) for a, b in pairwise(cuts))


@dataclass(frozen=True)
class Autoregressive(CausalCommit):
    """`CausalCommit` with blocks of one: each forward feeds the last token and predicts the next (`ar_generate`)."""

    name: ClassVar[str] = "autoregressive"
    fixed_block: ClassVar[int | None] = 1


@dataclass(frozen=True)
class LinearSpec(CausalCommit):
    """Used with the sampler of the same name: one forward drafts the next `block_length` positions at once, then a
    causal one verifies them and keeps the keys and values as far as it agrees (Nemotron's `linear_spec_generate`).

    The causal forward overwrites all keys and values of the draft, so the drafter, even a LoRA adapter, affects only
    the number of forwards, never a token.
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
        """Position of the last token chosen by a causal pass: its keys and values are computed with the next draft."""
        if canvas.plan.phase == "reuse":
            return canvas.committed
        masks = np.flatnonzero(canvas.tokens == canvas.mask_id)
        return int(masks[0]) - 1 if len(masks) else canvas.length - 1
