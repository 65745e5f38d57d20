"""Block layout of a canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Canvas positions `[start, stop)` and their share of the schedule's steps."""

    start: int
    stop: int
    steps: int


def blocks_from(tokens: IntArray, first: int, block_length: int, steps: int, mask_id: int) -> tuple[Block, ...]:
    """Blocks of `block_length` from position `first` to the end of `tokens [length]`; the last may be short.

    Blocks without a mask are left out. `steps` is split evenly; earlier blocks take the remainder.
    """
    starts = range(first, len(tokens), block_length)
    spans = [(start, min(start + block_length, len(tokens))) for start in starts]
    spans = [(start, stop) for start, stop in spans if (tokens[start:stop] == mask_id).any()]
    share, extra = divmod(steps, len(spans))
    return tuple(Block(start, stop, share + (index < extra)) for index, (start, stop) in enumerate(spans))


def first_block(tokens: IntArray, prompt_length: int, block_length: int, mask_id: int, *, aligned: bool) -> int:
    """Start of the first block: the end of the prompt, or the first mask inside it (infilling).

    Aligned blocks start at multiples of `block_length`; the first then holds the end of the prompt.
    """
    inside = np.flatnonzero(tokens[:prompt_length] == mask_id)
    first = int(inside[0]) if len(inside) else prompt_length
    return first // block_length * block_length if aligned else first
