"""The state of one sample of one request while it decodes. Plain numpy on the host; the only mutable thing in the heart
besides the arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dlm.decoding.request import Request

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Canvas positions `[start, stop)` and the steps that a schedule gives them."""

    start: int
    stop: int
    steps: int


def layout(tokens: IntArray, prompt_length: int, block_length: int, steps: int, mask_id: int) -> tuple[Block, ...]:
    """Blocks of `block_length` from the end of the prompt, or from the first mask inside it; the last may be short.

    Blocks without a mask are left out. `steps` is shared evenly, the earlier blocks taking the remainder.
    """
    first = int(np.argmax(tokens == mask_id)) if (tokens[:prompt_length] == mask_id).any() else prompt_length
    starts = range(first, len(tokens), block_length)
    spans = [(start, min(start + block_length, len(tokens))) for start in starts]
    spans = [(start, stop) for start, stop in spans if (tokens[start:stop] == mask_id).any()]
    share, extra = divmod(steps, len(spans))
    return tuple(Block(start, stop, share + (index < extra)) for index, (start, stop) in enumerate(spans))


class Canvas:
    """Prompt and masked positions of one sample, and how far it has come.

    Attributes:
        tokens: `[length]` int64, the mask id where undecided.
        given: `[length]` bool, the positions that the prompt decided.
        blocks, block_index: the layout and the active block.
        block_steps: forwards made in the active block.
        block_masks: masks the active block had at its start.
        nfe, positions: forwards made and positions recomputed so far.
        slots: arena ranges (start) of the canvas and of its unconditional twin, while it runs; None without a cache.
        memory: what the sampler keeps for the active block; None at its start.
    """

    def __init__(self, request: Request, sample: int, seed: int, mask_id: int) -> None:
        params = request.params
        self.request, self.sample, self.seed, self.mask_id = request, sample, seed, mask_id
        self.prompt_length = len(request.prompt_ids)
        self.tokens = np.full(self.prompt_length + params.gen_length, mask_id, dtype=np.int64)
        self.tokens[: self.prompt_length] = request.prompt_ids
        self.given = self.tokens != mask_id
        self.blocks = layout(self.tokens, self.prompt_length, params.block_length, params.steps, mask_id)
        self.nfe = 0
        self.positions = 0
        self.slots: tuple[int | None, ...] = ()
        self.admitted = 0.0
        self.step_map = np.zeros(self.length, dtype=np.int64)
        self.logprobs = np.full(self.length, np.nan)
        self._enter(0)

    def _enter(self, block_index: int) -> None:
        self.block_index = block_index
        self.block_steps = 0
        self.block_masks = len(self.masked())
        self.memory: Any = None

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def block(self) -> Block:
        return self.blocks[self.block_index]

    @property
    def block_start(self) -> int:
        return self.block.start

    @property
    def block_stop(self) -> int:
        return self.block.stop

    @property
    def guided(self) -> bool:
        return self.request.params.cfg_scale > 0

    def masked(self) -> IntArray:
        """Masked positions of the active block, ascending."""
        inside = self.tokens[self.block_start : self.block_stop] == self.mask_id
        return np.flatnonzero(inside) + self.block_start

    def demanded(self) -> int:
        """How many positions this forward must reveal at least so that `max_nfe` is kept and every block gets one."""
        limit = self.request.params.max_nfe
        if limit is None:
            return 1
        budget = limit - self.nfe
        left = int((self.tokens == self.mask_id).sum())
        here = len(self.masked())
        blocks_after = len(self.blocks) - self.block_index - 1
        forwards = max(1, min(budget - blocks_after, -(-budget * here // left)))
        return -(-here // forwards)

    def reveal(self, positions: IntArray, tokens: IntArray, logprobs: npt.NDArray[np.float64] | None) -> None:
        """Write tokens at masked positions, as the outcome of the forward just counted."""
        self.tokens[positions] = tokens
        self.step_map[positions] = self.nfe
        if logprobs is not None:
            self.logprobs[positions] = logprobs

    def answer(self, end_ids: Sequence[int]) -> tuple[IntArray, bool]:
        """The generated tokens up to the active block's end that lie before the first end token, and whether there is
        one."""
        generated = self.tokens[self.prompt_length : max(self.block_stop, self.prompt_length)]
        ends = np.flatnonzero(np.isin(generated, end_ids))
        return (generated[: ends[0]], True) if len(ends) else (generated, False)

    def next_block(self) -> bool:
        """Enter the next block; False when there is none."""
        if self.block_index + 1 == len(self.blocks):
            return False
        self._enter(self.block_index + 1)
        return True
