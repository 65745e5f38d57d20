"""Decoder options, per-step reports and running totals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlm.decoding.params import check_whole


@dataclass(frozen=True)
class DecoderOptions:
    """Limits and switches of a decoder.

    Attributes:
        max_num_seqs: canvases running at once (a guided pair counts once).
        max_num_batched_tokens: rows of one forward.
        arena_tokens: slots of the key/value arena; None sizes it for `max_num_seqs` canvases of the model's full
            length, within a quarter of the free memory.
        logits_mib: memory for logits, in MiB; more rows are processed in chunks.
        poison: fill freed arena ranges with NaN (tests).
        deterministic: keep an answer's bits independent of what it is batched with. None does so on a CPU, where it is
            cheap, and not on a GPU; there, true gives matmuls and attention fixed shapes, but not yet the reductions
            (never run there).
        enforce_eager: do not record CUDA graphs; slower.
    """

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 8192
    arena_tokens: int | None = None
    logits_mib: int = 512
    poison: bool = False
    deterministic: bool | None = None
    enforce_eager: bool = False

    def __post_init__(self) -> None:
        """Raises `RequestError` for a limit below 1."""
        check_whole("max_num_seqs", self.max_num_seqs, 1)
        check_whole("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        if self.arena_tokens is not None:
            check_whole("arena_tokens", self.arena_tokens, 1)


@dataclass(frozen=True)
class StepReport:
    """Contents of one forward, for progress displays and tests."""

    num_canvases: int
    num_rows: int
    num_revealed: int
    engines: frozenset[str]


@dataclass
class DecoderStats:
    """Totals since the decoder was created. Occupancy is the share of `max_num_seqs` that took part in a forward."""

    num_steps: int = 0
    num_rows: int = 0
    num_revealed: int = 0
    num_canvases: int = 0
    max_num_seqs: int = 1
    seconds: float = 0.0

    @property
    def mean_occupancy(self) -> float:
        """Mean over forwards, 0..1; nan before the first."""
        return self.num_canvases / (self.num_steps * self.max_num_seqs) if self.num_steps else math.nan
