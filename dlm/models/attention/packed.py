"""What every backend shares: the segments of a forward, and the writing of their windows into the arena."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dlm.models.attention.kv_retention import thinned
from dlm.models.attention.segments import Segment


class PackedAttention:
    """What the backends share: the arena and the writing of windows into it.

    Args:
        segments: the windows, in row order, covering the tokens of the batch without a gap.
        keys, values: the arena, `[layers, slots, kv_heads, head_dim]`; None when no segment needs it.
    """

    def __init__(self, segments: Sequence[Segment], keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.segments = list(segments)
        self.keys, self.values = keys, values
        self.tokens = self.segments[-1].row + self.segments[-1].rows

    def store(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the windows' keys and values into the arena; returns the layer's arena."""
        if self.keys is None or self.values is None:
            return key, value
        keys, values = self.keys[layer], self.values[layer]
        for segment in self.segments:
            if segment.slot is not None:
                rows = slice(segment.row, segment.row + segment.rows)
                own = key[rows], value[rows]
                if segment.retain is not None:
                    own = thinned(query[rows], *own, segment.retain)
                slots = slice(segment.slot, segment.slot + len(own[0]))
                keys[slots], values[slots] = own
        return keys, values
