"""What engines, samplers and canvases tell each other: plain values on the host. No loop, no model, no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from dlm.decoding.layout import Block
from dlm.decoding.params import SamplingParams
from dlm.models.attention.segments import Retain

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NONE: Indices = np.zeros(0, dtype=np.int64)
"""No candidate."""

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


@dataclass(frozen=True)
class Scores:
    """The candidates of one canvas, ascending: the masked positions of its active block, and for samplers that edit the
    decided ones too.

    Attributes:
        positions: `[m]` int64, places in the canvas.
        priority: `[m]` float64, higher is revealed earlier; which quantity is the sampler's `ranks_by`.
        log_odds: `[m]` float64, log((1 - c) / c) of the proposed token's probability c; orders candidates where c
            rounds to 1.
        tokens: `[m]` int64, the proposed tokens.
        proposes_mask: `[m]` bool, the proposal is the mask id, which is never written.
        masked: `[m]` bool, undecided.
        differs: `[m]` bool, the proposal is not what stands there.
        uniform: `[m]` float64 in (0, 1), noise of this canvas, step and position.
        divergence: `[m]` float64, KL(p_now || p_before) against the forward before in this block, inf where there was
            none or the sampler does not `track` it.
    """

    positions: Indices
    priority: Floats
    log_odds: Floats
    tokens: Indices
    proposes_mask: Flags
    masked: Flags
    differs: Flags
    uniform: Floats
    divergence: Floats

    @property
    def confidence(self) -> Floats:
        """`[m]` float64 in 0..1."""
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + np.exp(self.log_odds))

    def descending(self) -> Indices:
        """Candidates from best to worst; ties go to the lower position."""
        return np.argsort(-self.priority, kind="stable")


@dataclass(frozen=True)
class StepContext:
    """Where the canvas stands in its active block.

    Attributes:
        step: steps of the block's schedule before this one.
        steps: the share of the schedule that the block has.
        masks: masked positions at the block's start.
        left: how many of them are still masked.
        block_length, gen_length: as asked for.
        floor: the least threshold that the engine lets a sampler use.
    """

    step: int
    steps: int
    masks: int
    left: int
    block_length: int
    gen_length: int
    floor: float = 0.0


@dataclass(frozen=True)
class LogitBias:
    """Amounts to add to single logits: entry k adds `amounts[k]` at candidate `rows[k]` and token `tokens[k]`."""

    rows: Indices
    tokens: Indices
    amounts: Floats

    def joined(self, other: LogitBias) -> LogitBias:
        """Both."""
        return LogitBias(
            np.concatenate((self.rows, other.rows)),
            np.concatenate((self.tokens, other.tokens)),
            np.concatenate((self.amounts, other.amounts)),
        )


@dataclass(frozen=True)
class LengthEstimate:
    """What a forward of the whole canvas expects at each generated position, whatever stands there.

    Attributes:
        positions: `[m]` int64, ascending.
        confidence: `[m]` float64, probability of the most probable token.
        ends: `[m]` bool, that token ends the sequence.
        eos_id: which token that is.
    """

    positions: Indices
    confidence: npt.NDArray[np.float64]
    ends: npt.NDArray[np.bool_]
    eos_id: int

    def end_confidence(self, count: int) -> float:
        """Mean over the last `count` positions that propose the end, 0..1."""
        return float(self.confidence[self.ends][-count:].sum() / count)


@dataclass
class ReferenceSchedule:
    """How far the program that an algorithm comes from would be: it also makes forwards on blocks that are finished.

    dInfer looks whether a block is finished only after a number of iterations, and makes an ordinary forward right
    after each one that fills the cache. Its warm-up and its smoothing count those forwards; here they are counted and
    not made.

    Attributes:
        forwards: made so far, by the program's count.
        left: iterations before it looks again whether the block is finished.
        pending: the iteration has filled the cache and its ordinary forward is due.
        has_cache: the cache was filled once.
        tested: the last block whose novelty was tested, which happens only where there is a cache.
    """

    forwards: int = 0
    left: int = 0
    pending: bool = False
    has_cache: bool = False
    tested: int = 0

    def begin(self, masks: int, unroll: Unroll) -> None:
        """The next forward is due; where the program looks at the block first, it finds `masks`."""
        if self.left <= 0 and not self.pending:
            self.left = max(1, min(masks // unroll.expected_tpf, unroll.maximum))

    def advance(self, phase: Phase, block_index: int) -> None:
        """One forward was made."""
        if self.has_cache and not self.pending and phase != "whole":
            self.tested = block_index
        self.forwards += 1
        if phase == "refresh":
            self.has_cache = self.pending = True
        else:
            self.pending = False
            self.left -= 1

    @property
    def makes_another(self) -> bool:
        """Whether the program would make another forward before it looks at the block."""
        return self.pending or self.left > 0


class CanvasState(Protocol):
    """What an engine may read of a canvas; see `dlm.decoding.canvas.Canvas`."""

    tokens: Indices
    mask_id: int
    shifted: bool
    blocks: tuple[Block, ...]
    block_index: int
    block_forwards: int
    committed: int
    ceiling: int
    plan: Plan
    reference: ReferenceSchedule

    @property
    def params(self) -> SamplingParams:
        """How the prompt is decoded."""

    @property
    def length(self) -> int:
        """Positions."""

    @property
    def block_start(self) -> int:
        """Where the active block begins."""

    @property
    def block_stop(self) -> int:
        """Where it ends."""
