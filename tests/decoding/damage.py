"""A model whose weights are damaged, for some requests only."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from dlm.decoding.canvas import Canvas
from dlm.decoding.decoder import Decoder
from dlm.decoding.packing import Batch


def damage(decoder: Decoder, chosen: Callable[[Canvas], bool], *, begin: int = 1, value: float = math.nan) -> None:
    """Make the hidden states of the chosen canvases `value` from their forward `begin` on, counted from 1."""
    forward = decoder._forward

    def damaged(batch: Batch) -> Tensor:
        hidden = forward(batch)
        for entry, segment in zip(batch.entries, batch.segments, strict=True):
            if chosen(entry.canvas) and entry.canvas.nfe + 1 >= begin:
                hidden[segment.row : segment.row + entry.rows] = value
        return hidden

    decoder._forward = damaged  # type: ignore[method-assign]  # of this decoder alone
