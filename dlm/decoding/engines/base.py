"""What an engine is: from where a canvas stands to what the next forward recomputes. No loop, no model, no tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dlm.decoding.types import CanvasState, Plan, Smoothing, Unroll
from dlm.models.architecture import AttentionKind


class Engine(ABC):
    """Names the windows of each forward. A value: what it must know of the past stands on the canvas.

    The defaults are those of an engine for bidirectional models, with blocks behind the prompt and masks fed as masks.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What users call it."""

    @property
    def attention(self) -> AttentionKind:
        """The kind of model that it is for."""
        return "bidirectional"

    @property
    def takes_shifted(self) -> bool:
        """It also runs models whose row i predicts position i + 1."""
        return False

    @property
    def blocks_from_zero(self) -> bool:
        """Blocks lie on multiples of the block length from position 0, and the canvas is rounded up to whole blocks."""
        return False

    @property
    def one_block(self) -> bool:
        """The whole answer is one block, whatever block length is asked for."""
        return False

    @property
    def fixed_block(self) -> int | None:
        """A block length of its own, in place of the one asked for."""
        return None

    @property
    def grows(self) -> bool:
        """Positions may be put into the canvas after a forward of all of it (`dlm.decoding.expansion`)."""
        return False

    @property
    def smoothing(self) -> Smoothing | None:
        """How masked positions are fed; None feeds the mask."""
        return None

    @property
    def unroll(self) -> Unroll | None:
        """When the program that it comes from looks at a block, where a rule depends on that."""
        return None

    @abstractmethod
    def slots(self, canvas: CanvasState) -> int:
        """Arena slots that the canvas needs, and as many again its unconditional pair; 0 for none."""

    @abstractmethod
    def plan(self, canvas: CanvasState) -> Plan:
        """The canvas's next forward; it holds the rows of every position that may be written."""

    def shared(self, canvas: CanvasState) -> int:
        """How many positions from the canvas's start have keys and values that are the same for all samples, so that
        the first one's can be taken over before a forward."""
        return 0

    def committed(self, canvas: CanvasState) -> int:
        """Positions before this one have their final keys and values in the arena, now that a forward was made."""
        return canvas.block_start

    def least_forwards(self, canvas: CanvasState, masks: int) -> int:
        """Fewest forwards that a block with so many masks can take."""
        return 1
