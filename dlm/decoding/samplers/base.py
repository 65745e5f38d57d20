"""What every sampler sees and gives: host values, one call for each canvas and forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from dlm.decoding.request import SamplingParams
from dlm.errors import RequestError

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NONE: Indices = np.zeros(0, dtype=np.int64)
"""No candidate."""


@dataclass(frozen=True)
class Scores:
    """The candidates of one canvas, ascending: the masked positions of its active block, and for samplers that edit the
    decided ones too.

    Attributes:
        positions: `[m]` int64, places in the canvas.
        rank: `[m]` float64, higher is revealed earlier; which quantity depends on the sampler's `order`.
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
    rank: Floats
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
        return np.argsort(-self.rank, kind="stable")


@dataclass(frozen=True)
class Turn:
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


class Sampler(Protocol):
    """Says which candidates become tokens. A value; what it must remember for a block it returns as memory."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def order(self) -> str:
        """The quantity candidates are ranked by: `low_confidence`, `entropy`, `margin` or `random`."""

    @property
    def whole_canvas(self) -> bool:
        """With engine `full` the canvas is one block."""

    @property
    def edits(self) -> bool:
        """Decided positions of the block are candidates too; those chosen are replaced."""

    @property
    def track(self) -> bool:
        """`Scores.divergence` is wanted."""

    @property
    def self_paced(self) -> bool:
        """It makes progress by a rule of its own: what it chooses is written and nothing else."""

    @property
    def boosts(self) -> bool:
        """`boost` is asked, with the most probable tokens of the raw logits."""

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        """Raise `RequestError` when the sampler cannot honour `params`."""

    def idle(self, turn: Turn, uniform: Callable[[int], Floats]) -> int:
        """How many steps of the schedule from this one on reveal nothing, so that no forward is made for them.

        `uniform` gives the noise of the block's masks at a step.
        """

    def boost(self, scores: Scores, memory: Any) -> tuple[Boost, Any]:
        """What to add to the logits before proposals are made again, and the memory from here."""

    def select(self, scores: Scores, turn: Turn, memory: Any) -> tuple[Indices, Any]:
        """Indices of the candidates to write, and the memory for the block's next step."""

    def remask(self, scores: Scores, chosen: Indices) -> Indices:
        """Indices of decided candidates that become masks again, the least sure first; none of those chosen."""

    def done(self, left: int, memory: Any) -> bool:
        """Whether the block is finished with `left` masks in it."""

    def settled(self, memory: Any) -> bool:
        """Whether what stands in the block is final."""


@dataclass(frozen=True)
class Boost:
    """Amounts to add to single logits: entry k adds `amounts[k]` at candidate `rows[k]` and token `tokens[k]`."""

    rows: Indices
    tokens: Indices
    amounts: Floats

    def joined(self, other: Boost) -> Boost:
        """Both."""
        return Boost(
            np.concatenate((self.rows, other.rows)),
            np.concatenate((self.tokens, other.tokens)),
            np.concatenate((self.amounts, other.amounts)),
        )


class Ordinary:
    """What most samplers share: ranked by confidence, blocks, no schedule, no edits, done when no mask is left."""

    order: ClassVar[str] = "low_confidence"
    whole_canvas: ClassVar[bool] = False
    edits: ClassVar[bool] = False
    track: ClassVar[bool] = False
    self_paced: ClassVar[bool] = False
    boosts: ClassVar[bool] = False

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        """Any parameters will do."""

    def idle(self, turn: Turn, uniform: Callable[[int], Floats]) -> int:
        return 0

    def boost(self, scores: Scores, memory: Any) -> tuple[Boost, Any]:
        return Boost(NONE, NONE, np.zeros(0)), memory

    def remask(self, scores: Scores, chosen: Indices) -> Indices:
        return NONE

    def done(self, left: int, memory: Any) -> bool:
        return left == 0

    def settled(self, memory: Any) -> bool:
        return True


def check_length(name: str, params: SamplingParams) -> None:
    """Raise `RequestError` when the answer may grow: the sampler shares a known number of masks out over steps."""
    if params.initial_gen_length is not None:
        raise RequestError(
            f"initial_gen_length={params.initial_gen_length}: sampler {name} shares out a known number of masks; "
            "choose one without a schedule, such as threshold"
        )
