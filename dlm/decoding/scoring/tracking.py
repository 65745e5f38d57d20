"""What a canvas keeps of a forward, so that the next one can say how far each position's distribution has moved.

Hidden states are kept and their logits made once more: between two forwards there is no vocabulary-sized row.
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
        block_index: the block that they lie in; the track ends with it.
        positions: `[m]` int64, ascending.
        hidden: `[m, hidden]`, what their logits are made of.
        uncond: the same of the unconditional pair, when guided.
    """

    block_index: int
    positions: IntArray
    hidden: Tensor
    uncond: Tensor | None

    def knows(self, positions: IntArray) -> npt.NDArray[np.bool_]:
        """Which of `positions` it has."""
        return np.isin(positions, self.positions)

    def find(self, positions: IntArray) -> IntArray:
        """Their rows; any row for those that it does not have."""
        return np.minimum(np.searchsorted(self.positions, positions), len(self.positions) - 1)


def rows_of(tracks: Sequence[tuple[Track, Tensor]]) -> Rows:
    """Rows of several tracks, each with the indices `[n]` int64 wanted of it, laid end to end."""
    unconds = [track.uncond[index] for track, index in tracks if track.uncond is not None]
    return Rows(torch.cat([track.hidden[index] for track, index in tracks]), torch.cat(unconds) if unconds else None)
