"""The engine interface: maps a canvas's state to what the next forward recomputes. No loop, no model, no tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dlm.decoding.types import CanvasState, Plan, Smoothing, Unroll
from dlm.models.architecture import AttentionKind


class Engine(ABC):
    """Plans the windows of each forward. An immutable value: all state lives on the canvas.

    The defaults are for bidirectional models, with blocks after the prompt and masks fed as masks.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its public name."""

    @property
    def attention(self) -> AttentionKind:
        """The kind of attention it supports."""
        return "bidirectional"

    @property
    def takes_shifted(self) -> bool:
        """Whether it also runs models whose row i predicts position i + 1."""
        return False

    @property
    def blocks_from_zero(self) -> bool:
        """Whether blocks start at multiples of the block length from position 0, the canvas rounded up to blocks."""
        return False

    @property
    def one_block(self) -> bool:
        """Whether the whole answer is one block, regardless of the requested block length."""
        return False

    @property
    def fixed_block(self) -> int | None:
        """Block length that overrides the requested one, if any."""
        return None

    @property
    def grows(self) -> bool:
        """Whether masks may be inserted after a forward of the whole canvas (`dlm.decoding.expansion`)."""
        return False

    @property
    def smoothing(self) -> Smoothing | None:
        """Soft inputs for masked positions; None feeds the mask."""
        return None

    @property
    def unroll(self) -> Unroll | None:
        """When its reference program checks a block, if a rule depends on that."""
        return None

    @abstractmethod
    def slots(self, canvas: CanvasState) -> int:
        """Arena slots that the canvas needs, and again for its unconditional pair; 0 for none."""

    @abstractmethod
    def plan(self, canvas: CanvasState) -> Plan:
        """The canvas's next forward; its windows cover the rows that predict every position that may be written."""

    def shared(self, canvas: CanvasState) -> int:
        """Number of positions from the canvas's start whose keys and values are the same for all samples, so those of
        the first sample can be reused without a forward."""
        return 0

    def committed(self, canvas: CanvasState) -> int:
        """Positions before this one have their final keys and values in the arena after the last forward."""
        return canvas.block_start

    def least_forwards(self, canvas: CanvasState, masks: int) -> int:
        """Fewest forwards that a block with `masks` masks needs."""
        return 1
