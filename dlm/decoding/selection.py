"""From hidden states to what each canvas writes: score the candidates, ask the samplers, keep the guarantees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlm.decoding import noise
from dlm.decoding.canvas import Canvas
from dlm.decoding.expansion import Outlook
from dlm.decoding.layout import IntArray
from dlm.decoding.packing import Batch
from dlm.decoding.samplers import Boost, Scores
from dlm.decoding.samplers.base import NONE
from dlm.decoding.scoring import Head, Proposals, Rows, ScoreSpec, score
from dlm.decoding.tracking import Track, rows_of
from dlm.models.devices import upload
from dlm.models.families import SpecialTokens


@dataclass(frozen=True)
class Choice:
    """What one canvas writes: positions, tokens and, when recorded, log-probabilities; the positions that become masks
    again; and its sampler's memory."""

    positions: IntArray
    tokens: IntArray
    cleared: IntArray
    logprobs: npt.NDArray[np.float64] | None
    memory: Any


NO_PROPOSALS = Proposals(NONE, *(np.zeros(0) for _ in range(3)))


@dataclass
class Question:
    """What is asked about one canvas in one forward, and what came back.

    Attributes:
        canvas: which.
        positions: those to score.
        ban_mask: the mask id may not be proposed.
        plain: the most probable tokens are wanted, whatever the temperature.
        raw: those of the logits as they are are wanted, and nothing else.
        boost: added to single logits first; its rows count `positions`.
        observe: also wanted of the raw logits.
        proposals, observed: the answer.
    """

    canvas: Canvas
    positions: IntArray
    ban_mask: bool = False
    plain: bool = False
    raw: bool = False
    boost: Boost | None = None
    observe: str = ""
    proposals: Proposals | None = None
    observed: Tensor | None = None


class Selector:
    """Chooses for all canvases of a step at once.

    Args:
        model: gives logits.
        special: the mask id and the ids that end an answer.
        max_rows: rows of logits that may exist at once.
    """

    def __init__(self, model: Head, special: SpecialTokens, max_rows: int) -> None:
        self.model, self.special, self.max_rows = model, special, max_rows

    def select(self, batch: Batch, canvases: Sequence[Canvas], hidden: Tensor) -> list[Choice]:
        """What each canvas writes after a forward that gave `hidden [num_rows, hidden]`.

        One transfer from the device; one more for canvases whose sampler boosts logits, and one for canvases whose
        proposals are mask ids only.
        """
        asked = []
        for canvas in canvases:
            observe = "divergence" if track_of(canvas) is not None else ""
            observe = "expected_embedding" if canvas.request.engine.smoothing else observe
            sampler = canvas.request.sampler
            banned = sampler.self_paced or canvas.plan.first_only
            asked.append(Question(canvas, canvas.scored(), banned, plain=sampler.boosts, observe=observe))
        outlooks = [Question(canvas, canvas.generated(), raw=True) for canvas in canvases if canvas.may_grow]
        self._answer(batch, [*asked, *outlooks], hidden)
        candidates = [canvas.candidates() for canvas in canvases]
        scores = [self._scores(*each) for each in zip(asked, candidates, strict=True)]
        memories = [canvas.memory for canvas in canvases]
        boosts = self._boosts(asked, candidates, scores, memories)
        if boosts:
            self._answer(batch, list(boosts.values()), hidden)
            for index, question in boosts.items():
                scores[index] = self._scores(question, candidates[index])
        answers = [boosts.get(index, question) for index, question in enumerate(asked)]
        choices = [choose(*each) for each in zip(answers, scores, memories, strict=True)]
        barred = [i for i, one in enumerate(choices) if lacking(canvases[i], one)]
        if barred:
            again = [replace(answers[i], positions=candidates[i], ban_mask=True, observe="") for i in barred]
            self._answer(batch, again, hidden)
            for index, question in zip(barred, again, strict=True):
                choices[index] = choose(question, self._scores(question, candidates[index]), memories[index])
        for canvas, question, choice in zip(canvases, asked, choices, strict=True):
            canvas.memory = choice.memory
            if canvas.request.sampler.track and not canvas.plan.probe:
                canvas.tensors["track"] = self._track(batch, question, hidden)
            if question.observe == "expected_embedding":
                canvas.tensors["expected"] = (question.positions, question.observed)
        for question in outlooks:
            if question.proposals is not None and self.special.eos_id is not None:
                question.canvas.outlook = Outlook.of(question.positions, question.proposals, self.special.eos_id)
        return choices

    def _boosts(
        self,
        asked: Sequence[Question],
        candidates: Sequence[IntArray],
        scores: Sequence[Scores],
        memories: list[Any],
    ) -> dict[int, Question]:
        """Questions to be asked again with boosted logits, by index; `memories` moves on."""
        again = {}
        for index, question in enumerate(asked):
            sampler = question.canvas.request.sampler
            if sampler.boosts and not question.canvas.plan.probe:
                boost, memories[index] = sampler.boost(scores[index], memories[index])
                again[index] = Question(question.canvas, candidates[index], boost=boost)
        return again

    def _scores(self, question: Question, candidates: IntArray) -> Scores:
        """What the sampler sees of a canvas's candidates."""
        canvas, proposals = question.canvas, question.proposals
        if proposals is None:
            raise RuntimeError("a question was not answered")
        where = np.searchsorted(question.positions, candidates)
        tokens, before = proposals.tokens[where], canvas.tokens[candidates]
        uniform = canvas.uniform(canvas.block_steps, candidates)
        return Scores(
            positions=candidates,
            rank=uniform if canvas.request.sampler.order == "random" else proposals.rank[where],
            log_odds=proposals.log_odds[where],
            tokens=tokens,
            proposes_mask=tokens == canvas.mask_id,
            masked=before == canvas.mask_id,
            differs=tokens != before,
            uniform=uniform,
            divergence=self._divergence(question),
        )

    def _divergence(self, question: Question) -> npt.NDArray[np.float64]:
        """KL(p_now || p_before) of each position against the forward before in the same block, where it is tracked."""
        track, observed = track_of(question.canvas), question.observed
        if question.observe != "divergence" or track is None or observed is None:
            return np.full(len(question.positions), np.inf)
        return np.where(track.knows(question.positions), observed.double().cpu().numpy(), np.inf)

    def _track(self, batch: Batch, question: Question, hidden: Tensor) -> Track:
        """What the next forward is compared with."""
        canvas, positions = question.canvas, question.positions
        rows, *twins = (
            hidden[upload(batch.rows(canvas, positions, twin=twin), hidden.device)]
            for twin in (False, True)[: 1 + canvas.guided]
        )
        return Track(canvas.block_index, positions, rows, twins[0] if twins else None)

    def _answer(self, batch: Batch, questions: Sequence[Question], hidden: Tensor) -> None:
        """Fill in proposals, scored together where the specs agree."""
        groups: dict[ScoreSpec, list[Question]] = {}
        for question in questions:
            question.proposals = NO_PROPOSALS
            if len(question.positions):
                groups.setdefault(self._spec(question), []).append(question)
        if not groups:
            return
        parts: list[Tensor] = []
        for spec, members in groups.items():
            table, observed = score(self.model, self._rows(batch, members, spec, hidden), spec, self.max_rows)
            parts.append(table)
            if observed is not None:
                sizes = [len(question.positions) for question in members]
                for question, rows in zip(members, torch.split(observed, sizes), strict=True):
                    question.observed = rows
        whole = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).cpu().numpy()
        first = 0
        for spec, members in groups.items():
            for question in members:
                last = first + len(question.positions)
                question.proposals = Proposals.from_table(whole[:, first:last], spec)
                first = last

    def _rows(self, batch: Batch, members: Sequence[Question], spec: ScoreSpec, hidden: Tensor) -> Rows:
        """The rows of questions that share a spec, on the device."""
        device = hidden.device
        rows = np.concatenate([batch.rows(one.canvas, one.positions) for one in members])
        twin = keys = boosts = None
        if spec.cfg_scale:
            twin_rows = np.concatenate([batch.rows(one.canvas, one.positions, twin=True) for one in members])
            twin = hidden[upload(twin_rows, device)]
        if spec.temperature:
            row_keys = [
                noise.keys(one.canvas.seed, one.canvas.sample, one.canvas.nfe + 1, one.positions) for one in members
            ]
            keys = upload(np.concatenate(row_keys).view(np.int64), device)
        if spec.boosted:
            firsts = np.cumsum([0, *(len(one.positions) for one in members[:-1])])
            given = [(first, one.boost) for first, one in zip(firsts, members, strict=True) if one.boost is not None]
            at = np.concatenate([boost.rows + first for first, boost in given])
            amounts = upload(np.concatenate([boost.amounts for _, boost in given]), device)
            boosts = (upload(at, device), upload(np.concatenate([b.tokens for _, b in given]), device), amounts)
        before = None
        if spec.observe == "divergence":
            tracks = [(track_of(one.canvas), one.positions) for one in members]
            before = rows_of([(track, upload(track.find(at), device)) for track, at in tracks if track is not None])
        return Rows(hidden[upload(rows, device)], twin, keys, boosts, before)

    def _spec(self, question: Question) -> ScoreSpec:
        canvas, special = question.canvas, self.special
        params = canvas.request.params
        if question.raw:
            return ScoreSpec("low_confidence", cfg_scale=params.cfg_scale)
        warm = params.temperature > 0 and not question.plain
        banned = (special.eos_id,) if params.logits_eos_inf and special.eos_id is not None else ()
        return ScoreSpec(
            order=canvas.request.sampler.order,
            temperature=params.temperature if warm else 0.0,
            top_k=params.top_k if warm else 0,
            top_p=params.top_p if warm else 1.0,
            cfg_scale=params.cfg_scale,
            banned=(*banned, special.mask_id) if question.ban_mask else banned,
            deferred=special.end_ids if params.confidence_eos_eot_inf else (),
            record=params.record,
            boosted=question.boost is not None,
            observe=question.observe,
        )


def track_of(canvas: Canvas) -> Track | None:
    """What was kept of the forward before, if that was in the same block."""
    track: Track | None = canvas.tensors.get("track")
    return None if track is None or track.block_index != canvas.block_index else track


def lacking(canvas: Canvas, choice: Choice) -> bool:
    """Whether a choice decides too few masks."""
    if canvas.request.sampler.self_paced:
        return False
    decided = int((canvas.tokens[choice.positions] == canvas.mask_id).sum())
    return decided - len(choice.cleared) < canvas.demanded()


def choose(question: Question, scores: Scores, memory: Any) -> Choice:
    """Ask the canvas's sampler; drop mask proposals; keep the budget of `max_nfe` and the guarantee of progress.

    Fewer masks than `canvas.demanded()` are decided only where mask proposals stand in the way.
    """
    canvas = question.canvas
    if canvas.plan.probe:
        return Choice(NONE, NONE, NONE, None, memory)
    if canvas.plan.first_only:
        chosen = np.array([0])
    else:
        chosen, memory = canvas.request.sampler.select(scores, canvas.turn(), memory)
    chosen = chosen[~scores.proposes_mask[chosen]]
    cleared = NONE if canvas.plan.first_only else canvas.request.sampler.remask(scores, chosen)
    if not canvas.request.sampler.self_paced:
        decided, demanded = int(scores.masked[chosen].sum()), canvas.demanded()
        short = demanded - decided
        if short > 0 and (decided or not scores.proposes_mask.any()):
            ranked = scores.descending()
            spare = ranked[scores.masked[ranked] & ~scores.proposes_mask[ranked] & ~np.isin(ranked, chosen)]
            chosen = np.concatenate((chosen, spare[:short]))
            decided += len(spare[:short])
        cleared = cleared[: max(0, decided - demanded)]
    logprobs = None
    if canvas.request.params.record and question.proposals is not None:
        at = np.searchsorted(question.positions, scores.positions[chosen])
        logprobs = question.proposals.logprobs[at]
    return Choice(scores.positions[chosen], scores.tokens[chosen], scores.positions[cleared], logprobs, memory)
