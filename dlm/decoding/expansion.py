"""How an answer grows while it is decoded (DAEDAL, arXiv 2508.00819): how long it will be, where it needs room.

What the model expects at the end says whether the canvas is long enough. Its *end confidence* is the mean, over the
last `eos_check_tokens` generated positions whose most probable token is the end of the sequence, of that token's
probability; positions that are missing count as 0. Only forwards of the whole canvas are asked.

1. Before decoding, forwards that write nothing are made as long as the end confidence is below
   `eos_confidence_threshold`; after each `expansion_factor` masks are put behind the canvas. Once it is reached,
   `eos_check_tokens // 2` end tokens go behind the masks.
2. While decoding, as long as it is below `expand_eos_confidence_threshold`, the mask of the active block in which the
   model has least confidence, and less than `low_conf_threshold`, becomes `expansion_factor` masks.

Blocks keep their length; what is put in pushes the rest into the next ones. Nothing is pushed beyond `gen_length`: as
many masks are put in as there is room for (the program that came with the paper cuts off the end instead).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlm.decoding.canvas import Canvas
from dlm.decoding.layout import IntArray
from dlm.decoding.types import LengthEstimate

if TYPE_CHECKING:
    from dlm.decoding.scoring.proposals import Proposals


def length_estimate(positions: IntArray, proposals: Proposals, eos_id: int) -> LengthEstimate:
    """From what was proposed at temperature 0 without any token forbidden."""
    with np.errstate(over="ignore"):
        confidence = 1.0 / (1.0 + np.exp(proposals.log_odds))
    return LengthEstimate(positions, confidence, proposals.tokens == eos_id, eos_id)


def grow(canvas: Canvas) -> None:
    """Let the canvas grow where the last forward, whose tokens are written, asks for it."""
    estimate, canvas.length_estimate = canvas.length_estimate, None
    if estimate is None:
        return
    params = canvas.request.params
    end = estimate.end_confidence(params.eos_check_tokens)
    if not canvas.plan.probe:
        if end < params.expand_eos_confidence_threshold:
            _insert(canvas, estimate)
    elif end < params.eos_confidence_threshold:
        grown = canvas.insert(canvas.length, params.expansion_factor, canvas.mask_id)
        canvas.sizing = grown and canvas.length < canvas.ceiling
    else:
        canvas.insert(canvas.length, params.eos_check_tokens // 2, estimate.eos_id)
        canvas.sizing = False


def _insert(canvas: Canvas, estimate: LengthEstimate) -> None:
    """One doubtful mask of the active block becomes several."""
    params = canvas.request.params
    masked = np.isin(estimate.positions, canvas.masked())
    doubtful = np.flatnonzero(masked & (estimate.confidence < params.low_conf_threshold))
    if len(doubtful):
        worst = doubtful[np.argmin(estimate.confidence[doubtful])]
        canvas.insert(int(estimate.positions[worst]), params.expansion_factor - 1, canvas.mask_id)
