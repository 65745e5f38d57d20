"""What an engine is: from where a canvas stands to what the next forward recomputes. No loop, no model, no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from dlm.models.architecture import AttentionKind
from dlm.models.attention.segments import Retain

if TYPE_CHECKING:
    from dlm.decoding.canvas import Canvas

Phase = Literal["whole", "refresh", "reuse"]
"""A forward of the whole canvas that keeps nothing; one that fills the cache; one that reads it."""


@dataclass(frozen=True)
class Window:
    """Canvas positions `[start, stop)` to recompute, and what they attend to.

    Attributes:
        start, stop: the query range.
        place: where in the canvas's arena range the window's first key and value go; None keeps nothing.
        keys: attend to so many slots from the start of that range, after the window has been written there; None
            attends to the window itself.
        causal: the last query sees all keys, the one before it all but one, and so on.
        retain: thin the window's keys out and keep those that remain at the start of the range.
        drafts: what it gives will be verified, so that a model's drafter may compute it (`dlm.models.lora.drafter`).
    """

    start: int
    stop: int
    place: int | None = None
    keys: int | None = None
    causal: bool = False
    retain: Retain | None = None
    drafts: bool = False


@dataclass(frozen=True)
class Plan:
    """One forward of a canvas.

    Attributes:
        windows: disjoint, in the order of their positions.
        first_only: exactly the first position of the block is decided, whatever the sampler says: the block's other
            forwards cannot see what predicts it.
        shifted: a position is predicted by the row before it.
        reads: positions `[start, stop)` that may be written; None: those of the active block.
        phase: what the forward does with the cache.
        probe: nothing is written; the forward is made to see how long the answer will be.
    """

    windows: tuple[Window, ...]
    first_only: bool = False
    shifted: bool = False
    phase: Phase = "whole"
    reads: tuple[int, int] | None = None
    probe: bool = False

    @property
    def rows(self) -> int:
        """Positions recomputed."""
        return sum(window.stop - window.start for window in self.windows)


@dataclass(frozen=True)
class Smoothing:
    """Masked positions are fed E[mask] + w (softmax(logits) E) with the logits of the forward before (dInfer).

    Attributes:
        weight_init, weight_growth, weight_limit: w = min(weight_init + weight_growth t, weight_limit) at forward t.
        threshold_decay: samplers with a threshold use max(1 - threshold_decay t, threshold).
    """

    weight_init: float
    weight_growth: float
    weight_limit: float
    threshold_decay: float

    def weight(self, forward: int) -> float:
        """w at forward `forward` of the canvas, from 0."""
        return min(self.weight_init + self.weight_growth * forward, self.weight_limit)

    def floor(self, forward: int) -> float:
        """The least threshold at forward `forward`."""
        return 1.0 - self.threshold_decay * forward


@dataclass(frozen=True)
class Unroll:
    """A program that looks whether a block is finished only now and then.

    It looks after max(1, min(masks // expected_tpf, maximum)) iterations. Forwards that it makes on a finished block
    are counted where they matter, and not made.
    """

    maximum: int
    expected_tpf: int


class Engine(Protocol):
    """Names the windows of each forward. A value: what it must know of the past stands on the canvas."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def attention(self) -> AttentionKind:
        """The kind of model that it is for."""

    @property
    def takes_shifted(self) -> bool:
        """It also runs models whose row i predicts position i + 1."""

    @property
    def blocks_from_zero(self) -> bool:
        """Blocks lie on multiples of the block length from position 0, and the canvas is rounded up to whole blocks."""

    @property
    def one_block(self) -> bool:
        """The whole answer is one block, whatever block length is asked for."""

    @property
    def fixed_block(self) -> int | None:
        """A block length of its own, in place of the one asked for."""

    @property
    def grows(self) -> bool:
        """Positions may be put into the canvas after a forward of all of it (`dlm.decoding.expansion`)."""

    @property
    def smoothing(self) -> Smoothing | None:
        """How masked positions are fed; None feeds the mask."""

    @property
    def unroll(self) -> Unroll | None:
        """How the program that it comes from paces itself, where a rule depends on that."""

    def slots(self, canvas: Canvas) -> int:
        """Arena slots that the canvas (and as many that its twin) needs; 0 for none."""

    def plan(self, canvas: Canvas) -> Plan:
        """The canvas's next forward; it holds the rows of every position that may be written."""

    def shared(self, canvas: Canvas) -> int:
        """How many positions from the canvas's start have keys and values that are the same for all samples, so that
        the first one's can be taken over before a forward."""

    def committed(self, canvas: Canvas) -> int:
        """Positions before this one have their final keys and values in the arena, now that a forward was made."""

    def least_forwards(self, canvas: Canvas, masks: int) -> int:
        """Fewest forwards that a block with so many masks can take."""


class Defaults:
    """What most engines have: bidirectional models, blocks behind the prompt, masks fed as masks, no pace to keep."""

    attention: ClassVar[AttentionKind] = "bidirectional"
    takes_shifted: ClassVar[bool] = False
    blocks_from_zero: ClassVar[bool] = False
    one_block: ClassVar[bool] = False
    fixed_block: ClassVar[int | None] = None
    grows: ClassVar[bool] = False

    def shared(self, canvas: Canvas) -> int:
        return 0

    def committed(self, canvas: Canvas) -> int:
        return canvas.block_start

    def least_forwards(self, canvas: Canvas, masks: int) -> int:
        return 1

    @property
    def smoothing(self) -> Smoothing | None:
        return None

    @property
    def unroll(self) -> Unroll | None:
        return None
