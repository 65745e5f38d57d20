"""What is decoded: prompts of random tokens, fixed in length and number, and the forwards that they take.

The forwards follow from the schedule alone, so that the ceiling can be computed from them; the measurement checks that
both programs made exactly these.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dlm.bench.config import WorkloadConfig

GSM8K_LENGTHS = (109, 139, 91, 77, 104, 81, 84, 112, 126, 97, 101, 87, 66, 94, 232, 118)
"""Prompt lengths like those of GSM8K, mean 107: sixteen evenly spaced quantiles, the shortest and the longest included,
of the 1,319 test questions (words, digits and signs counted as tokens) plus 45 tokens of chat template and instruction;
in shuffled order."""


@dataclass(frozen=True)
class Forward:
    """One model call.

    Attributes:
        windows: for each canvas in it the positions recomputed and the keys they attend to.
        head_rows: positions that get logits.
    """

    windows: tuple[tuple[int, int], ...]
    head_rows: int

    @property
    def rows(self) -> int:
        """Positions recomputed."""
        return sum(queries for queries, _ in self.windows)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        engine, batch, dtype: what the row is about.
        prompts: token ids.
        gen_length, block_length: of each canvas.
        blocks: how many blocks are decoded.
        steps_per_block: the schedule.
    """

    engine: str
    batch: int
    dtype: str
    prompts: tuple[tuple[int, ...], ...]
    gen_length: int
    block_length: int
    blocks: int
    steps_per_block: int

    @property
    def steps(self) -> int:
        """The schedule's total, as requests name it: over all blocks of the canvas, decoded or not."""
        return self.steps_per_block * (self.gen_length // self.block_length)

    @property
    def nfe(self) -> int:
        """Forwards of each canvas."""
        return self.steps_per_block * self.blocks

    @property
    def tokens(self) -> int:
        """Tokens revealed for all prompts."""
        return len(self.prompts) * self.blocks * self.block_length

    def windows(self, prompt_length: int) -> list[tuple[int, int, int]]:
        """For each forward of one canvas: positions recomputed, keys attended to, masks of the active block."""
        length = prompt_length + self.gen_length
        found = []
        for block in range(self.blocks):
            start = prompt_length + block * self.block_length
            masked = self.block_length
            for step, quota in enumerate(self.quotas()):
                recomputed = {
                    "full": length,
                    "prefix_cache": length - start if step else length,
                    "dual_cache": self.block_length if step else length,
                }[self.engine]
                found.append((recomputed, length, masked))
                masked -= quota
        return found

    def quotas(self) -> list[int]:
        """Positions revealed at each step of a block."""
        each, extra = divmod(self.block_length, self.steps_per_block)
        return [each + (step < extra) for step in range(self.steps_per_block)]

    def reference_forwards(self) -> list[Forward]:
        """One canvas at a time; logits for every position fed."""
        return [
            Forward(((rows, keys),), rows) for prompt in self.prompts for rows, keys, _ in self.windows(len(prompt))
        ]

    def packed_forwards(self) -> list[Forward]:
        """All canvases in each forward; logits for the masked positions of the active blocks."""
        lanes = [self.windows(len(prompt)) for prompt in self.prompts]
        return [
            Forward(tuple((rows, keys) for rows, keys, _ in step), sum(masked for _, _, masked in step))
            for step in zip(*lanes, strict=True)
        ]


def cases(work: WorkloadConfig, vocab_size: int) -> list[Case]:
    """The rows of the table, in order."""
    return [
        Case(
            engine=engine,
            batch=batch,
            dtype=dtype,
            prompts=prompts(prompt_lengths(batch, work.prompt_length), vocab_size, work.seed),
            gen_length=work.gen_length,
            block_length=work.block_length,
            blocks=work.blocks,
            steps_per_block=work.steps_per_block[engine],
        )
        for dtype in work.dtypes
        for engine in work.engines
        for batch in work.batches
    ]


def prompt_lengths(batch: int, prompt_length: int) -> list[int]:
    """`prompt_length` for a single canvas; for more, GSM8K-like lengths, stretched where `prompt_length` is not 128."""
    if batch == 1:
        return [prompt_length]
    return [max(1, GSM8K_LENGTHS[i % len(GSM8K_LENGTHS)] * prompt_length // 128) for i in range(batch)]


def prompts(lengths: Sequence[int], vocab_size: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Random tokens; the last three ids, end and mask, are left out."""
    draw = random.Random(seed)
    return tuple(tuple(draw.randrange(vocab_size - 3) for _ in range(length)) for length in lengths)
