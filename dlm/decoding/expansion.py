"""Growing an answer while it is decoded (DAEDAL, arXiv 2508.00819): its expected length, and where to insert masks.

The model's predictions at the end show whether the canvas is long enough. Its *end confidence* is the mean, over the
last `eos_check_tokens` generated positions whose most probable token is end-of-sequence, of that token's probability;
missing positions count as 0. It is measured only in forwards of the whole canvas.

1. Before decoding, while the end confidence is below `eos_confidence_threshold`, run forwards that write nothing and
   append `expansion_factor` masks after each. Once it is reached, append `eos_check_tokens // 2` end tokens.
2. While decoding, while it is below `expand_eos_confidence_threshold`, replace the active block's mask with the lowest
   confidence, if below `low_conf_threshold`, with `expansion_factor` masks.

Blocks keep their length; inserted masks push the rest into the next ones. Nothing is pushed beyond `gen_length`: only
as many masks are inserted as fit (the paper's program truncates the end instead).
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
    """Estimate from the proposals at temperature 0 with no token banned."""
    with np.errstate(over="ignore"):
        confidence = 1.0 / (1.0 + np.exp(proposals.log_odds))
    return LengthEstimate(positions, confidence, proposals.tokens == eos_id, eos_id)


def grow(canvas: Canvas) -> None:
    """Grow the canvas if the last forward, whose tokens are already written, calls for it."""
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
    """Replace the active block's least confident mask with several."""
    params = canvas.request.params
    masked = np.isin(estimate.positions, canvas.masked())
    doubtful = np.flatnonzero(masked & (estimate.confidence < params.low_conf_threshold))
    if len(doubtful):
        worst = doubtful[np.argmin(estimate.confidence[doubtful])]
        canvas.insert(int(estimate.positions[worst]), params.expansion_factor - 1, canvas.mask_id)
