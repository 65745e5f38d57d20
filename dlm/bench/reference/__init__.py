"""The reference loops, in plain PyTorch, one prompt at a time: each engine's public program.

    full, prefix_cache, dual_cache   LLaDA and Fast-dLLM    `llada`
    vicinity                         dInfer                 `dinfer`
    block_causal                     SDAR                   `sdar`

Each passes the golden vectors of its program (`tests/bench/test_reference.py`), so it decodes the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from dlm.bench.reference import dinfer, llada, sdar
from dlm.bench.reference.model import (
    BlankModel,
    ReferenceCall,
    ReferenceModel,
    ReferenceNetwork,
    ReferenceOutcome,
    supports,
)
from dlm.bench.workloads import Case

__all__ = [
    "PROGRAMS",
    "BlankModel",
    "ReferenceCall",
    "ReferenceModel",
    "ReferenceNetwork",
    "ReferenceOutcome",
    "ReferenceProgram",
    "supports",
]


@dataclass(frozen=True)
class ReferenceProgram:
    """A program as the bench runs it.

    Attributes:
        run: decodes one prompt of a case; the last argument is the mask id.
        score_dtype: dtype of its softmax; None: the logits' own.
    """

    run: Callable[[ReferenceNetwork, Sequence[int], Case, int], ReferenceOutcome]
    score_dtype: torch.dtype | None


def _llada(model: ReferenceNetwork, prompt: Sequence[int], case: Case, mask_id: int, *, cache: str) -> ReferenceOutcome:
    lengths = case.gen_length, case.block_length
    return llada.generate(
        model, prompt, llada.LLaDASettings(mask_id, *lengths, case.steps, cache=cache, blocks=case.blocks)
    )


def _dinfer(model: ReferenceNetwork, prompt: Sequence[int], case: Case, mask_id: int) -> ReferenceOutcome:
    lengths = case.gen_length, case.block_length
    return dinfer.generate(
        model, prompt, dinfer.DInferSettings(mask_id, *lengths, case.steps_per_block, blocks=case.blocks)
    )


def _sdar(model: ReferenceNetwork, prompt: Sequence[int], case: Case, mask_id: int) -> ReferenceOutcome:
    lengths = case.gen_length, case.block_length
    return sdar.generate(model, prompt, sdar.SdarSettings(mask_id, *lengths, case.steps_per_block, blocks=case.blocks))


PROGRAMS: dict[str, ReferenceProgram] = {
    "full": ReferenceProgram(partial(_llada, cache="none"), torch.float64),
    "prefix_cache": ReferenceProgram(partial(_llada, cache="prefix"), torch.float64),
    "dual_cache": ReferenceProgram(partial(_llada, cache="dual"), torch.float64),
    "vicinity": ReferenceProgram(_dinfer, torch.float32),
    "block_causal": ReferenceProgram(_sdar, None),
}
"""By engine; other engines are timed without a reference."""
