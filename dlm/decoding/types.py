"""Plain host values that engines, samplers and canvases exchange. No loop, no model, no tensor."""

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
"""A forward of the whole canvas that caches nothing, one that fills the cache, or one that reads it."""


@dataclass(frozen=True)
class Window:
    """Canvas positions `[start, stop)` to recompute, and what they attend to.

    Attributes:
        start, stop: the query range.
        place: offset in the canvas's arena range of the window's first key and value; None stores nothing.
        keys: number of slots to attend to from the start of that range, once the window is written there; None attends
            to the window itself.
        causal: the last query sees all keys, the one before it all but one, and so on.
        retain: select among the window's keys and store the selected ones at the start of the range.
        drafts: its output will be verified, so the model's drafter may compute it (`dlm.models.lora.drafter`).
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
        windows: disjoint, ordered by position.
        first_only: decide exactly the first position of the block, whatever the sampler selects: later forwards of the
            block do not compute the row that predicts it.
        shifted: a position is predicted by the row before it.
        reads: positions `[start, stop)` that may be written; None is the active block.
        phase: how the forward uses the cache.
        probe: write nothing; the forward only estimates the length of the answer.
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
    """Masked positions are fed E[mask] + w (softmax(logits) E), logits from the previous forward (dInfer).

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
        """Lower bound of the threshold at forward `forward`."""
        return 1.0 - self.threshold_decay * forward


@dataclass(frozen=True)
class Unroll:
    """A reference program that checks only every few iterations whether a block is finished.

    It checks after max(1, min(masks // expected_tpf, maximum)) iterations. Its forwards on a finished block are counted
    where the count matters, but not run.
    """

    maximum: int
    expected_tpf: int


@dataclass(frozen=True)
class Scores:
    """The candidates of one canvas, ascending: the masked positions of its active block, and also the decided ones for
    samplers that edit.

    Attributes:
        positions: `[m]` int64, in the canvas.
        priority: `[m]` float64, higher is revealed earlier; the sampler's `ranks_by` names the quantity.
        log_odds: `[m]` float64, log((1 - c) / c) of the proposed token's probability c; orders candidates where c
            rounds to 1.
        tokens: `[m]` int64, the proposed tokens.
        proposes_mask: `[m]` bool, the proposal is the mask id, which is never written.
        masked: `[m]` bool, undecided.
        differs: `[m]` bool, the proposal differs from the current token.
        uniform: `[m]` float64 in (0, 1), noise of this canvas, step and position.
        divergence: `[m]` float64, KL(p_now || p_before) against the previous forward in this block; inf if there was
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
    """Progress of a canvas within its active block.

    Attributes:
        step: steps of the block's schedule before this one.
        steps: the block's share of the schedule.
        masks: masked positions at the block's start.
        left: how many of them are still masked.
        block_length, gen_length: as requested.
        floor: lowest threshold that the engine allows a sampler.
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
    """Amounts added to individual logits: entry k adds `amounts[k]` at candidate `rows[k]`, token `tokens[k]`."""

    rows: Indices
    tokens: Indices
    amounts: Floats

    def joined(self, other: LogitBias) -> LogitBias:
        """The entries of both."""
        return LogitBias(
            np.concatenate((self.rows, other.rows)),
            np.concatenate((self.tokens, other.tokens)),
            np.concatenate((self.amounts, other.amounts)),
        )


@dataclass(frozen=True)
class LengthEstimate:
    """What a forward of the whole canvas predicts at each generated position, masked or not.

    Attributes:
        positions: `[m]` int64, ascending.
        confidence: `[m]` float64, probability of the most probable token.
        ends: `[m]` bool, that token is `eos_id`.
        eos_id: the end-of-sequence token.
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
    """Progress of the reference program that an algorithm comes from, which also runs forwards on finished blocks.

    dInfer checks only every few iterations whether a block is finished, and runs a regular forward right after each one
    that fills the cache. Its warm-up and smoothing count those forwards; here they are counted but not run.

    Attributes:
        forwards: forwards so far, by the program's count.
        left: iterations until it next checks whether the block is finished.
        pending: the iteration has filled the cache; its regular forward is due.
        has_cache: the cache has been filled.
        tested: the last block tested for being new; tested only once there is a cache.
    """

    forwards: int = 0
    left: int = 0
    pending: bool = False
    has_cache: bool = False
    tested: int = 0

    def begin(self, masks: int, unroll: Unroll) -> None:
        """Start the next forward; if the program checks the block first, it finds `masks` masks."""
        if self.left <= 0 and not self.pending:
            self.left = max(1, min(masks // unroll.expected_tpf, unroll.maximum))

    def advance(self, phase: Phase, block_index: int) -> None:
        """Count one forward."""
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
        """Whether the program would run another forward before it checks the block."""
        return self.pending or self.left > 0


class CanvasState(Protocol):
    """The part of a canvas that an engine may read; see `dlm.decoding.canvas.Canvas`."""

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
        """Sampling parameters of the request."""

    @property
    def length(self) -> int:
        """Number of positions."""

    @property
    def block_start(self) -> int:
        """First position of the active block."""

    @property
    def block_stop(self) -> int:
        """End of the active block, exclusive."""
