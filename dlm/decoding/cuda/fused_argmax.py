"""Proposals from half-precision logits in a single pass on a GPU, without a float32 copy.

Matches the torch code of `scoring/proposals.py`: equal tokens, and odds up to rounding. Needs the package `triton`,
which torch installs on CUDA machines.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK, WARPS = 4096, 8
MAX_BANNED = 2


@cache
def available() -> bool:
    """Whether the kernel can be built here."""
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None


@cache
def _kernel() -> Any:
    return importlib.import_module("dlm.decoding.cuda.triton_argmax").triton_argmax


def fusible(logits: Tensor) -> bool:
    """Whether `argmax` supports these logits: half precision, contiguous columns, on CUDA."""
    half = logits.dtype in (torch.bfloat16, torch.float16)
    return logits.is_cuda and half and logits.stride(1) == 1 and available()


def argmax(logits: Tensor, banned: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The most probable token of each row, and the odds against it.

    Args:
        logits: `[rows, vocab]` half precision on CUDA; not modified.
        banned: up to `MAX_BANNED` ids that count as -inf.

    Returns:
        The lowest id with the greatest logit, `[rows]` int64, and the sum of exp(logit - greatest) over all others,
        `[rows]` float32.
    """
    rows, columns = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    others = torch.empty(rows, dtype=torch.float32, device=logits.device)
    first, second = (*banned, -1, -1)[:MAX_BANNED]
    with torch.cuda.device(logits.device):
        _kernel()[(rows,)](
            logits, tokens, others, columns, logits.stride(0), first, second, BLOCK=BLOCK, num_warps=WARPS
        )
    return tokens, others
