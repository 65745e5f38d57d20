"""The loops that the decoder is compared with, in plain PyTorch, one prompt at a time: each engine's public program.

    full, prefix_cache, dual_cache   LLaDA and Fast-dLLM    `llada`
    vicinity                         dInfer                 `dinfer`
    block_causal                     SDAR                   `sdar`

Each passes the golden vectors of its program (`tests/bench/test_reference.py`), so it decodes what that decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from dlm.bench.reference import dinfer, llada, sdar
from dlm.bench.reference.model import BlankModel, Call, Model, Outcome, ReferenceModel, supports
from dlm.bench.workloads import Case

__all__ = ["PROGRAMS", "BlankModel", "Call", "Model", "Outcome", "Program", "ReferenceModel", "supports"]


@dataclass(frozen=True)
class Program:
    """A program as the bench runs it.

    Attributes:
        run: decodes one prompt of a case; the last argument is the mask id.
        score_dtype: in which it takes probabilities; None: the logits' own.
    """

    run: Callable[[Model, Sequence[int], Case, int], Outcome]
    score_dtype: torch.dtype | None


def _llada(model: Model, prompt: Sequence[int], case: Case, mask_id: int, *, cache: str) -> Outcome:
    lengths = case.gen_length, case.block_length
    return llada.generate(model, prompt, llada.Settings(mask_id, *lengths, case.steps, cache=cache, blocks=case.blocks))


def _dinfer(model: Model, prompt: Sequence[int], case: Case, mask_id: int) -> Outcome:
    lengths = case.gen_length, case.block_length
    return dinfer.generate(model, prompt, dinfer.Settings(mask_id, *lengths, case.steps_per_block, blocks=case.blocks))


def _sdar(model: Model, prompt: Sequence[int], case: Case, mask_id: int) -> Outcome:
    lengths = case.gen_length, case.block_length
    return sdar.generate(model, prompt, sdar.Settings(mask_id, *lengths, case.steps_per_block, blocks=case.blocks))


PROGRAMS: dict[str, Program] = {
    "full": Program(partial(_llada, cache="none"), torch.float64),
    "prefix_cache": Program(partial(_llada, cache="prefix"), torch.float64),
    "dual_cache": Program(partial(_llada, cache="dual"), torch.float64),
    "vicinity": Program(_dinfer, torch.float32),
    "block_causal": Program(_sdar, None),
}
"""By engine; engines that are not here are timed without a reference."""
