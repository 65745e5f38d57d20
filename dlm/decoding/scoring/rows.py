"""Rows of a packed forward that are scored together, with their per-row inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

Boosts = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Rows:
    """The candidates of one spec, on the device.

    Attributes:
        hidden: `[rows, hidden]`.
        uncond: the same positions of the unconditional pairs, if guided.
        keys: `[rows]` int64 noise keys, if the temperature is above 0.
        biases: rows and tokens `[k]` int64 and amounts `[k]` float64, if boosted.
        boosting: computes the `biases` of a range of rows from its first row and its unbiased table `[6, rows]`.
        before: the same positions in an earlier forward, if their divergence is observed.
    """

    hidden: Tensor
    uncond: Tensor | None = None
    keys: Tensor | None = None
    biases: Boosts | None = None
    boosting: Callable[[int, Tensor], Boosts] | None = None
    before: Rows | None = None

    def filled(self, tile: int) -> Rows:
        """Copy padded with zero rows to a multiple of `tile`."""
        spare = -self.hidden.shape[0] % tile
        if not spare:
            return self
        return Rows(
            F.pad(self.hidden, (0, 0, 0, spare)),
            None if self.uncond is None else F.pad(self.uncond, (0, 0, 0, spare)),
            None if self.keys is None else F.pad(self.keys, (0, spare)),
            self.biases,
            self.boosting,
            None if self.before is None else self.before.filled(tile),
        )

    def slice(self, start: int, stop: int) -> Rows:
        """Rows `[start, stop)`."""
        biases = self.biases
        if biases is not None:
            here = (biases[0] >= start) & (biases[0] < stop)
            biases = (biases[0][here] - start, biases[1][here], biases[2][here])
        part = slice(start, stop)
        uncond = None if self.uncond is None else self.uncond[part]
        before = None if self.before is None else self.before.slice(start, stop)
        keys = None if self.keys is None else self.keys[part]
        return Rows(self.hidden[part], uncond, keys, biases, before=before)
