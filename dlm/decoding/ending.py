"""When the active block is done, and when the answer is: functions of the canvas. Knows no model and no tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm.decoding.canvas import Canvas
from dlm.decoding.layout import IntArray
from dlm.decoding.scoring.selection import Selection


def goes_on(canvas: Canvas, choice: Selection, end_ids: Sequence[int]) -> bool:
    """Whether the active block needs another forward.

    Args:
        canvas: with `choice` written.
        choice: the selection of its last forward.
        end_ids: tokens that end an answer.
    """
    params, left, sampler = canvas.request.params, len(canvas.masked()), canvas.request.sampler
    if not left and params.max_nfe is not None and canvas.nfe >= params.max_nfe:
        return False
    ends = params.eos_early_stop and bool(np.isin(choice.tokens, end_ids).any())
    if (ends or (sampler.ignores_budget and not params.ignore_eos)) and sampler.is_final(canvas.memory):
        answer, ended = canvas.answer(end_ids)
        if ended and canvas.mask_id not in answer:
            return False
    return not sampler.done(left, canvas.memory)


def enter_next(canvas: Canvas, end_ids: Sequence[int]) -> tuple[IntArray, bool] | None:
    """After the active block: enter the next one and return None; or, if the answer is complete, return its tokens and
    whether an end token or `should_stop` ended it."""
    answer, ended = canvas.answer(end_ids)
    stop = canvas.request.should_stop
    halted = stop is not None and stop(answer.tolist())
    if halted or (ended and not canvas.request.params.ignore_eos) or not canvas.next_block():
        return answer, ended or halted
    return None
