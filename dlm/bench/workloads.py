"""What is decoded: random prompts, fixed in length and number; and the description of one model call."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dlm.bench.config import SpeedConfig, prompt_lengths


@dataclass(frozen=True)
class Forward:
    """One model call.

    Attributes:
        windows: the positions recomputed and the keys they attend to; a canvas may have several.
        head_rows: positions that get logits.
        score_rows: positions whose logits are scored.
        soft_rows: positions whose expected embedding is taken.
        revealed: positions decided.
    """

    windows: tuple[tuple[int, int], ...]
    head_rows: int
    score_rows: int
    soft_rows: int = 0
    revealed: int = 0

    @property
    def rows(self) -> int:
        """Positions recomputed."""
        return sum(queries for queries, _ in self.windows)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        size: of the model.
        engine, sampler, batch, dtype: what the row measures.
        prompt_length: as in the workload; the lengths of several prompts vary around it.
        prompts: token ids.
        gen_length, block_length: of each canvas.
        blocks: number of blocks to decode.
        steps_per_block: the schedule.
    """

    size: str
    engine: str
    sampler: str
    batch: int
    dtype: str
    prompt_length: int
    prompts: tuple[tuple[int, ...], ...]
    gen_length: int
    block_length: int
    blocks: int
    steps_per_block: int

    @property
    def steps(self) -> int:
        """Total steps as in a request: over all blocks of the canvas, decoded or not."""
        return self.steps_per_block * (self.gen_length // self.block_length)

    def __str__(self) -> str:
        lengths = f"{self.prompt_length}+{self.gen_length}"
        return f"{self.engine}, {self.sampler}, batch {self.batch}, {lengths}, {self.dtype}"


def cases(work: SpeedConfig, vocab_sizes: dict[str, int]) -> list[Case]:
    """The rows of the table, in order; `vocab_sizes` by model size."""
    return [
        Case(
            size=work.size_of(engine),
            engine=engine,
            sampler=sampler,
            batch=batch,
            dtype=dtype,
            prompt_length=prompt_length,
            prompts=prompts(prompt_lengths(batch, prompt_length), vocab_sizes[work.size_of(engine)], work.seed),
            gen_length=gen_length,
            block_length=work.block_length,
            blocks=work.blocks,
            steps_per_block=work.steps_per_block[engine],
        )
        for dtype in work.dtypes
        for engine in work.engines
        for sampler in work.samplers
        for prompt_length in work.prompt_lengths
        for gen_length in work.gen_lengths
        for batch in work.batches
    ]


def prompts(lengths: Sequence[int], vocab_size: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Random tokens, without the last three ids (end and mask)."""
    draw = random.Random(seed)
    return tuple(tuple(draw.randrange(vocab_size - 3) for _ in range(length)) for length in lengths)
