"""Rebuilds the states of a decoded canvas from the forward at which each token was revealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlm.decoding.layout import IntArray
from dlm.errors import RequestError
from dlm.likelihood.attention_layout import AttentionLayout, HiddenState, ScoredText


@dataclass(frozen=True)
class Replay:
    """A decoded canvas; the attributes are arguments of `Likelihood.replay_logprobs`.

    Attributes:
        prompt_ids: the prompt, filled in.
        token_ids: tokens after the prompt, at least to the end of the last block; the mask id where nothing was
            revealed.
        step_map: for each of `token_ids`, the 1-based forward that revealed it; 0 if none did.
        block_length, align_blocks: as used for decoding; None is the model's block length.
        canvas_length: positions after the prompt in the decoder's canvas; None: the length of `token_ids`.
    """

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    step_map: Sequence[int]
    block_length: int | None = None
    align_blocks: bool = False
    canvas_length: int | None = None


def check_steps(target: ScoredText, steps: IntArray, mask_id: int) -> None:
    """Raise `RequestError` unless exactly the unmasked tokens have a step, counted from 1.

    Args:
        target: prompt and canvas.
        steps: `[length of the canvas]` int64.
    """
    canvas = target.tokens[target.prompt_length :]
    if len(steps) != len(canvas):
        raise RequestError(
            f"replay_step_map has {len(steps)} entries for {len(canvas)} replay_token_ids; give one for each"
        )
    wrong = np.flatnonzero((steps < 1) != (canvas == mask_id))
    if len(steps) and len(wrong):
        at = int(wrong[0])
        raise RequestError(
            f"replay_step_map[{at}]={steps[at]} does not match replay_token_ids[{at}]={canvas[at]}: steps count from "
            f"1, and 0 marks positions that still hold the mask id {mask_id}"
        )


def replayed(presentation: AttentionLayout, target: ScoredText, steps: IntArray, shrink: int) -> list[HiddenState]:
    """For each step, the canvas that it saw and the positions that it revealed.

    Args:
        presentation: splits the canvas into blocks, or not.
        target: prompt and canvas.
        steps: `[length of the canvas]` int64, 0 where nothing was revealed.
        shrink: number of consecutive steps of a block (or of an undivided canvas) merged into the first of them.
    """
    when = np.concatenate((np.full(target.prompt_length, -1), steps))
    when[when == 0] = np.iinfo(np.int64).max
    questions = []
    for start, stop in presentation.units(target):
        inside = when[start:stop]
        distinct = np.unique(steps[start - target.prompt_length : stop - target.prompt_length])
        distinct = distinct[distinct > 0]
        for group in range(0, len(distinct), shrink):
            first, last = distinct[group], distinct[group : group + shrink][-1]
            asked = start + np.flatnonzero((inside >= first) & (inside <= last))
            questions.append(HiddenState(when >= first, asked))
    return questions
