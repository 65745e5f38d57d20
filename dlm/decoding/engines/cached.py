"""Engines for bidirectional models: recompute the whole canvas every time, or parts of it against cached keys and
values (Fast-dLLM, arXiv 2505.22618; dInfer, arXiv 2510.08666)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from dlm.decoding.engines.base import Engine
from dlm.decoding.params import check_whole
from dlm.decoding.types import CanvasState, Phase, Plan, Unroll, Window


@dataclass(frozen=True)
class Full(Engine):
    """Recomputes the whole canvas at every step (LLaDA's `generate`)."""

    name: ClassVar[str] = "full"
    takes_shifted: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    def slots(self, canvas: CanvasState) -> int:
        return 0

    def plan(self, canvas: CanvasState) -> Plan:
        return Plan((Window(0, canvas.length),), shifted=canvas.shifted)


class Cached(Engine):
    """Base of the cached engines: a forward of the whole canvas fills the cache at a block's first step; later ones
    recompute `span` and read the rest from the cache."""

    def slots(self, canvas: CanvasState) -> int:
        return canvas.ceiling

    def least_forwards(self, canvas: CanvasState, masks: int) -> int:
        return min(masks, 2) if canvas.shifted else 1

    def phase(self, canvas: CanvasState) -> Phase:
        return "refresh" if canvas.block_forwards == 0 else "reuse"

    @abstractmethod
    def span(self, canvas: CanvasState) -> tuple[int, int]:
        """Positions `[start, stop)` that a step inside a block recomputes."""

    def plan(self, canvas: CanvasState) -> Plan:
        phase = self.phase(canvas)
        if phase == "reuse":
            start, stop = self.span(canvas)
            return Plan((Window(start, stop, start, canvas.length),), shifted=canvas.shifted, phase=phase)
        kept = 0 if phase == "refresh" else None
        seeds = canvas.shifted and canvas.tokens[canvas.block_start] == canvas.mask_id
        return Plan((Window(0, canvas.length, kept),), first_only=seeds, shifted=canvas.shifted, phase=phase)


@dataclass(frozen=True)
class PrefixCache(Cached):
    """Recomputes from the block's start to the end of the canvas."""

    name: ClassVar[str] = "prefix_cache"
    takes_shifted: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    def span(self, canvas: CanvasState) -> tuple[int, int]:
        return canvas.block_start, canvas.length


@dataclass(frozen=True)
class DualCache(Cached):
    """Recomputes the block alone."""

    name: ClassVar[str] = "dual_cache"
    takes_shifted: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    def span(self, canvas: CanvasState) -> tuple[int, int]:
        return canvas.block_start, canvas.block_stop


@dataclass(frozen=True)
class Vicinity(Cached):
    """Recomputes the block with `prefix_look` positions before and `after_look` after it.

    The first `warmup_steps` forwards of a canvas are whole and cache nothing. The cache is filled when there is none
    and at each later block's first forward. Forwards that dInfer runs on a finished block are counted but not run.

    Attributes:
        prefix_look, after_look, warmup_steps: as above.
        maximum_unroll, expected_tpf: see `Unroll`.
    """

    prefix_look: int = 16
    after_look: int = 16
    warmup_steps: int = 4
    maximum_unroll: int = 4
    expected_tpf: int = 8
    name: ClassVar[str] = "vicinity"

    def __post_init__(self) -> None:
        for field in ("prefix_look", "after_look", "warmup_steps"):
            check_whole(field, getattr(self, field), 0)
        for field in ("maximum_unroll", "expected_tpf"):
            check_whole(field, getattr(self, field), 1)

    @property
    def unroll(self) -> Unroll:
        return Unroll(self.maximum_unroll, self.expected_tpf)

    def phase(self, canvas: CanvasState) -> Phase:
        reference = canvas.reference
        if reference.pending:
            return "reuse"
        if reference.forwards < self.warmup_steps:
            return "whole"
        return "reuse" if reference.has_cache and reference.tested == canvas.block_index else "refresh"

    def span(self, canvas: CanvasState) -> tuple[int, int]:
        return max(0, canvas.block_start - self.prefix_look), min(canvas.length, canvas.block_stop + self.after_look)
