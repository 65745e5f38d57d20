"""Data kept from one forward, so that the next can measure how far each position's distribution moved.

Hidden states are kept and their logits recomputed, so no vocabulary-sized row is held between forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlm.decoding.layout import IntArray
from dlm.decoding.scoring.rows import Rows


@dataclass(frozen=True)
class Track:
    """The scored positions of one forward.

    Attributes:
        block_index: their block; the track is valid only within it.
        positions: `[m]` int64, ascending.
        hidden: `[m, hidden]`, inputs of the LM head.
        uncond: the same for the unconditional pair, if guided.
    """

    block_index: int
    positions: IntArray
    hidden: Tensor
    uncond: Tensor | None

    def knows(self, positions: IntArray) -> npt.NDArray[np.bool_]:
        """Which of `positions` it holds."""
        return np.isin(positions, self.positions)

    def find(self, positions: IntArray) -> IntArray:
        """Row of each position; an arbitrary row for those it does not hold."""
        return np.minimum(np.searchsorted(self.positions, positions), len(self.positions) - 1)


def rows_of(tracks: Sequence[tuple[Track, Tensor]]) -> Rows:
    """Rows of several tracks, each at its indices `[n]` int64, concatenated."""
    unconds = [track.uncond[index] for track, index in tracks if track.uncond is not None]
    return Rows(torch.cat([track.hidden[index] for track, index in tracks]), torch.cat(unconds) if unconds else None)
