"""What every sampler sees and gives: host values, one call for each canvas and forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from dlm.decoding.request import SamplingParams

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """The candidates of one canvas: the masked positions of its active block, ascending.

    Attributes:
        rank: `[m]` float64, higher is revealed earlier; which quantity depends on the sampler's `order`.
        log_odds: `[m]` float64, log((1 - c) / c) of the proposed token's probability c; orders candidates where c
            rounds to 1.
        proposes_mask: `[m]` bool, the proposal is the mask id, which is never written.
    """

    rank: Floats
    log_odds: Floats
    proposes_mask: npt.NDArray[np.bool_]

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
        step: forwards made in the block before this one.
        steps: the share of the schedule that the block has.
        masks: masked positions at the block's start.
        revealed: how many of them are revealed by now.
    """

    step: int
    steps: int
    masks: int
    revealed: int


class Sampler(Protocol):
    """Says which candidates become tokens. A value; what it must remember for a block it returns as memory."""

    name: ClassVar[str]

    @property
    def order(self) -> str:
        """The quantity candidates are ranked by: `low_confidence`, `entropy`, `margin` or `random`."""

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        """Raise `RequestError` when the sampler cannot honour `params`."""

    def select(self, scores: Scores, turn: Turn, memory: Any) -> tuple[Indices, Any]:
        """Indices of the candidates to reveal, and the memory for the block's next step."""
