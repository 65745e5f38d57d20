"""State of one sample of one request while it decodes. Plain numpy on the host; with the arena, the only mutable state
of the decoder core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlm.decoding import noise
from dlm.decoding.layout import Block, IntArray, blocks_from, first_block
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.scoring.token_stats import NUM_STATS
from dlm.decoding.types import LengthEstimate, Plan, ReferenceSchedule, StepContext, Window


class Canvas:
    """Prompt and masked positions of one sample, and its decoding progress.

    Args:
        request: the request.
        sample: index of the sample.
        seed: noise seed.
        mask_id: token of an undecided position.
        shifted: the model's row i predicts position i + 1.

    Attributes:
        tokens: `[length]` int64, the mask id where undecided.
        given: `[length]` bool, the positions decided by the prompt.
        blocks, block_index: the layout and the active block.
        block_forwards: forwards in the active block so far.
        block_steps: schedule steps taken in it: the forwards, and steps that reveal nothing and are skipped.
        block_masks: masks in the active block at its start.
        nfe, positions: forwards and recomputed positions so far.
        committed: positions before this one have their final keys and values in the arena (block-causal engines).
        ceiling: maximum length; the initial length if `initial_gen_length` is unset.
        sizing: still running forwards to find the length, before decoding.
        length_estimate: from the last forward, if requested.
        inserted: position and number of masks inserted after the last forward; None if none were.
        plan: the next forward.
        reference: progress by the count of the engine's reference program.
        slots: starts of the arena ranges of the canvas and its unconditional pair, while running; None without a cache.
        memory: sampler memory for the active block; None at its start.
        tensors: tensors kept on the device for the canvas, by name (`selection.py`, `soft_inputs.py`).
    """

    def __init__(self, request: Request, sample: int, seed: int, mask_id: int, *, shifted: bool = False) -> None:
        params = request.params
        self.request, self.sample, self.seed, self.mask_id, self.shifted = request, sample, seed, mask_id, shifted
        self.prompt_length = len(request.prompt_ids)
        engine = request.engine
        size, zeroed = engine.fixed_block or params.block_length, engine.blocks_from_zero
        longest = self.prompt_length + params.gen_length
        self.ceiling = -(-longest // size) * size if zeroed else longest
        length = self.ceiling if params.initial_gen_length is None else self.prompt_length + params.initial_gen_length
        self.tokens = np.full(length, mask_id, dtype=np.int64)
        self.tokens[: self.prompt_length] = request.prompt_ids
        self.given = self.tokens != mask_id
        whole = engine.one_block or (request.sampler.whole_canvas and engine.name == "full")
        self._block_length = length if whole else size
        aligned = not whole and (zeroed or params.align_blocks)
        self._first = first_block(self.tokens, self.prompt_length, size, mask_id, aligned=aligned)
        self.blocks = self._lay_out(self.tokens)
        self.sizing = length < self.ceiling
        self.length_estimate: LengthEstimate | None = None
        self.inserted: tuple[int, int] | None = None
        self.nfe = 0
        self.positions = 0
        self.committed = 0
        self.reference = ReferenceSchedule()
        self.slots: tuple[int | None, ...] = ()
        self.admitted = 0.0
        self.step_map = np.zeros(self.length, dtype=np.int64)
        self.logprobs = np.full(self.length, np.nan)
        self.token_stats = np.full((NUM_STATS, self.length if request.token_stats else 0), np.nan)
        self.tensors: dict[str, Any] = {}
        self._enter(0)

    def _lay_out(self, tokens: IntArray) -> tuple[Block, ...]:
        return blocks_from(tokens, self._first, self._block_length, self.request.params.steps, self.mask_id)

    def _enter(self, block_index: int) -> None:
        self.block_index = block_index
        self._begin_block()
        self.prepare()

    def _begin_block(self) -> None:
        self.block_forwards = self.block_steps = 0
        self.block_masks = len(self.masked())
        self.memory: Any = None

    def prepare(self) -> None:
        """Plan the next forward, skipping schedule steps that reveal nothing."""
        engine = self.request.engine
        self.sizing = self.sizing and self._spare_forwards(self.blocks, self.tokens) > 0
        if self.sizing:
            self.plan: Plan = Plan((Window(0, self.length),), shifted=self.shifted, probe=True)
            return
        if engine.unroll is not None:
            self.reference.begin(len(self.masked()), engine.unroll)
        self.plan = engine.plan(self)
        if not self.plan.first_only:
            self.block_steps += self.request.sampler.skipped_steps(self.context(), self.uniform)

    def uniform(self, step: int, positions: IntArray | None = None) -> npt.NDArray[np.float64]:
        """Noise in (0, 1) for `positions` (default: the block's masks) at a step of the block's schedule."""
        where = self.masked() if positions is None else positions
        return noise.uniform(noise.keys(self.seed, self.sample, step, where, noise.ORDER))

    def inherit(self, committed: int) -> None:
        """Record that the arena already holds the final keys and values of the positions before `committed`."""
        self.committed = committed
        self.plan = self.request.engine.plan(self)

    def context(self) -> StepContext:
        """Progress of the active block, for the sampler."""
        smoothing = self.request.engine.smoothing
        return StepContext(
            step=self.block_steps,
            steps=self.block.steps,
            masks=self.block_masks,
            left=len(self.masked()),
            block_length=self.request.params.block_length,
            gen_length=self.request.params.gen_length,
            floor=smoothing.floor(self.reference.forwards) if smoothing else 0.0,
        )

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters of the request."""
        return self.request.params

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

    @property
    def cost(self) -> int:
        """Rows of the next forward."""
        return self.plan.rows * (2 if self.guided else 1)

    def masked(self) -> IntArray:
        """Masked positions of the active block, ascending."""
        inside = self.tokens[self.block_start : self.block_stop] == self.mask_id
        return np.flatnonzero(inside) + self.block_start

    def candidates(self) -> IntArray:
        """Positions that the next forward may write, ascending: the masks of the active block; for samplers that edit,
        also its decided positions outside the prompt."""
        if self.plan.probe:
            return np.zeros(0, dtype=np.int64)
        if self.plan.first_only:
            return np.array([self.block_start])
        start, stop = self.plan.reads or (self.block_start, self.block_stop)
        if self.request.sampler.edits:
            return np.flatnonzero(~self.given[start:stop]) + start
        return np.flatnonzero(self.tokens[start:stop] == self.mask_id) + start

    def generated(self) -> IntArray:
        """Positions after the prompt."""
        return np.arange(self.prompt_length, self.length)

    def scored(self) -> IntArray:
        """Positions whose logits the next forward computes: the candidates; with a smoothing engine, also every
        recomputed mask."""
        if self.request.engine.smoothing is None:
            return self.candidates()
        masks = self.tokens == self.mask_id
        spans = [np.arange(window.start, window.stop) for window in self.plan.windows]
        return np.union1d(np.concatenate([span[masks[span]] for span in spans]), self.candidates())

    @property
    def may_grow(self) -> bool:
        """Whether to estimate the canvas's length from the next forward: it recomputes the whole canvas, and there is
        room to grow."""
        params = self.request.params
        if params.initial_gen_length is None or self.length >= self.ceiling or self.plan.rows < self.length:
            return False
        return self.plan.probe or min(params.expand_eos_confidence_threshold, params.low_conf_threshold) > 0

    def min_reveals(self) -> int:
        """Fewest positions this forward must reveal to stay within `max_nfe` with a forward left for every block."""
        if self.plan.probe:
            return 0
        here = len(self.masked())
        limit = self.request.params.max_nfe
        if self.plan.first_only or limit is None or not here:
            return min(1, here)
        budget = limit - self.nfe
        left = int((self.tokens == self.mask_id).sum())
        forwards = max(1, min(budget - self.reserved(self.block_index + 1), -(-budget * here // left)))
        return -(-here // forwards)

    def reserved(self, block_index: int) -> int:
        """Fewest forwards that the blocks from `block_index` on need."""
        return self._fewest(self.blocks[block_index:], self.tokens)

    def _fewest(self, blocks: Sequence[Block], tokens: IntArray) -> int:
        masks = ((tokens[block.start : block.stop] == self.mask_id).sum() for block in blocks)
        return sum(self.request.engine.least_forwards(self, int(count)) for count in masks)

    def _spare_forwards(self, blocks: Sequence[Block], tokens: IntArray) -> float:
        """Forwards that `max_nfe` leaves beyond the fewest that unfinished blocks need."""
        limit = self.request.params.max_nfe
        return np.inf if limit is None else limit - self.nfe - self._fewest(blocks, tokens)

    def insert(self, at: int, count: int, token: int) -> bool:
        """Insert up to `count` positions holding `token` before position `at`, shifting it and all later ones with
        their steps, and restart the active block. Returns whether the ceiling and `max_nfe` left room; if not, nothing
        changes."""
        count = min(count, self.ceiling - self.length)
        if not count:
            return False
        tokens = np.insert(self.tokens, at, np.full(count, token))
        rest = self._lay_out(tokens)
        if self._spare_forwards(rest, tokens) < 0:
            return False
        self.tokens, self.blocks = tokens, (*self.blocks[: self.block_index], *rest)
        self.given = np.insert(self.given, at, np.zeros(count, dtype=np.bool_))
        self.step_map = np.insert(self.step_map, at, np.zeros(count, dtype=np.int64))
        self.logprobs = np.insert(self.logprobs, at, np.full(count, np.nan))
        if self.request.token_stats:
            self.token_stats = np.insert(self.token_stats, [at] * count, np.nan, axis=1)
        self.tensors.pop("track", None)
        self.inserted = (at, count)
        self._begin_block()
        return True

    def write(
        self,
        positions: IntArray,
        tokens: IntArray,
        cleared: IntArray,
        logprobs: npt.NDArray[np.float64] | None,
        token_stats: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Apply a forward's outcome: write the chosen tokens and restore masks at the cleared positions."""
        self.tokens[cleared] = self.mask_id
        self.step_map[cleared] = 0
        self.logprobs[cleared] = np.nan
        if self.request.token_stats:
            self.token_stats[:, cleared] = np.nan
        self.tokens[positions] = tokens
        self.step_map[positions] = self.nfe
        if logprobs is not None:
            self.logprobs[positions] = logprobs
        if token_stats is not None:
            self.token_stats[:, positions] = token_stats

    def count_forward(self) -> None:
        """Count the planned forward."""
        self.nfe += 1
        self.positions += self.cost
        self.inserted = None
        if self.plan.probe:
            return
        self.block_forwards += 1
        self.block_steps += 1
        self.reference.advance(self.plan.phase, self.block_index)

    def finish_forward(self) -> None:
        """Update `committed` once the forward's selection is written."""
        self.committed = self.request.engine.committed(self)

    def answer(self, end_ids: Sequence[int]) -> tuple[IntArray, bool]:
        """The generated tokens up to the active block's end, truncated at the first end token, and whether there is
        one."""
        last = self.block_index + 1 == len(self.blocks)
        stop = min(self.length if last else self.block_stop, self.prompt_length + self.request.params.gen_length)
        generated = self.tokens[self.prompt_length : max(stop, self.prompt_length)]
        ends = np.flatnonzero(np.isin(generated, end_ids))
        return (generated[: ends[0]], True) if len(ends) else (generated, False)

    def next_block(self) -> bool:
        """Enter the next block; False when there is none."""
        if self.block_index + 1 == len(self.blocks):
            return False
        engine = self.request.engine
        while engine.unroll is not None and self.reference.makes_another:
            self.reference.advance(engine.plan(self).phase, self.block_index)
        self._enter(self.block_index + 1)
        return True
