"""The course of a decoding: what was decided at each step, and on which numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dlm.decoding.canvas import Canvas
from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions
from dlm.decoding.packing import Batch
from dlm.decoding.request import Request
from dlm.decoding.scoring import selection
from dlm.decoding.scoring.score_request import ScoreRequest
from dlm.decoding.scoring.selection import Selection, Selector
from dlm.decoding.types import Scores
from dlm.models.backbone import Backbone
from dlm.models.devices import upload
from dlm.models.families import SpecialTokens

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """One choice of a sampler, as of the moment before it was written.

    Attributes:
        step: 1-based forward that it belongs to.
        tokens: the canvas.
        logits: `[m, vocab]` of the candidates, after guidance and before the sampler adds anything.
        scores: what the sampler saw.
        question: a copy of what `choose` was asked.
        choice: what it chose.
    """

    step: int
    tokens: tuple[int, ...]
    logits: Floats
    scores: Scores
    question: ScoreRequest
    choice: Selection

    @property
    def boosted(self) -> Floats:
        """`logits` with what the sampler adds to them."""
        boost = self.question.boost
        if boost is None:
            return self.logits
        logits, rows = self.logits.copy(), np.searchsorted(self.scores.positions, boost.rows)
        np.add.at(logits, (rows, boost.tokens), boost.amounts)
        return logits

    @property
    def quantities(self) -> dict[str, Floats]:
        """All numbers that the choice and the sampler's memory come from."""
        scores = self.scores
        return {
            "logits": self.logits,
            "boosted logits": self.boosted,
            "priority": scores.priority,
            "log-odds": scores.log_odds,
            "divergence": scores.divergence,
        }

    @property
    def favourites(self) -> tuple[int, ...]:
        """The most probable token of each candidate, where the sampler remembers it; else nothing."""
        biases = self.question.canvas.request.sampler.biases
        return tuple(self.logits.argmax(-1).tolist()) if biases else ()

    def left_behind(self, choice: Selection | None = None) -> tuple[Any, ...]:
        """What is written by a choice (default: the one that was made) and remembered of it, real numbers apart."""
        made = choice or self.choice
        memory = None if self.question.canvas.request.sampler.biases else made.memory
        tokens = dict(zip(made.positions.tolist(), made.tokens.tolist(), strict=True))
        return tokens, set(made.cleared.tolist()), self.favourites, memory

    def rechosen(self, scores: Scores) -> Selection:
        """What would have been chosen with these scores."""
        return selection.choose(copy.deepcopy(self.question), scores)


class _Watching(Selector):
    """Keeps the decisions about the one canvas that it selects for."""

    def __init__(self, other: Selector) -> None:
        super().__init__(other.model, other.special, other.max_rows)
        self.decisions: list[Decision] = []

    def select(self, batch: Batch, canvases: Sequence[Canvas], hidden: Tensor) -> list[Selection]:
        choose = selection.choose

        def watched(question: ScoreRequest, scores: Scores) -> Selection:
            canvas, asked = question.canvas, copy.deepcopy(question)
            step, tokens = canvas.nfe + 1, tuple(canvas.tokens.tolist())
            logits, choice = self._logits(batch, canvas, scores, hidden), choose(question, scores)
            self.decisions.append(Decision(step, tokens, logits, scores, asked, choice))
            return choice

        with mock.patch.object(selection, "choose", watched):
            return super().select(batch, canvases, hidden)

    def _logits(self, batch: Batch, canvas: Canvas, scores: Scores, hidden: Tensor) -> Floats:
        sides = (False, True) if canvas.guided else (False,)
        rows = [upload(batch.rows(canvas, scores.positions, uncond=twin), hidden.device) for twin in sides]
        plain, *twins = (self.model.head(hidden[row]).double().cpu().numpy() for row in rows)
        for twin in twins:
            plain = twin + (canvas.request.params.cfg_scale + 1.0) * (plain - twin)
        return plain


def decisions(backbone: Backbone, special: SpecialTokens, request: Request) -> list[Decision]:
    """Decode a request alone."""
    decoder = Decoder(backbone, special, DecoderOptions(max_num_seqs=1, arena_tokens=1024))
    watching = decoder.selector = _Watching(decoder.selector)
    for completion in decoder.run([request]):
        assert completion.error is None, completion.error
    return watching.decisions


def first_difference(one: Sequence[Decision], other: Sequence[Decision]) -> int | None:
    """Index of the first decision that leaves something else behind; None where all agree."""
    for index, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine.tokens != theirs.tokens or mine.left_behind() != theirs.left_behind():
            return index
    return None if len(one) == len(other) else min(len(one), len(other))
