"""From hidden states to what each canvas writes: score candidates, run the samplers, enforce the guarantees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlm.decoding import noise
from dlm.decoding.canvas import Canvas
from dlm.decoding.expansion import length_estimate
from dlm.decoding.layout import IntArray
from dlm.decoding.packing import Batch
from dlm.decoding.scoring.proposals import Head, Proposals, ScoreSpec, score
from dlm.decoding.scoring.rows import Boosts, Rows
from dlm.decoding.scoring.score_request import ScoreRequest, track_of
from dlm.decoding.scoring.tracking import Track, rows_of
from dlm.decoding.types import NONE, LogitBias, Scores
from dlm.models.devices import upload
from dlm.models.families import SpecialTokens


@dataclass(frozen=True)
class Selection:
    """What one canvas writes: positions, tokens and, if recorded, log-probabilities; the positions that become masks
    again; its sampler's memory; and `[2, m]` statistics of the tokens, if requested. Empty if some logits are not
    finite: `unsound` is then the first such position."""

    positions: IntArray
    tokens: IntArray
    cleared: IntArray
    logprobs: npt.NDArray[np.float64] | None
    memory: Any
    token_stats: npt.NDArray[np.float64] | None = None
    unsound: int | None = None


class Selector:
    """Makes the selections of all canvases in a step.

    Args:
        model: computes logits.
        special: the mask id and the ids that end an answer.
        max_rows: most rows of logits at once.
    """

    def __init__(self, model: Head, special: SpecialTokens, max_rows: int) -> None:
        self.model, self.special, self.max_rows = model, special, max_rows

    def select(self, batch: Batch, canvases: Sequence[Canvas], hidden: Tensor) -> list[Selection]:
        """What each canvas writes after a forward with output `hidden [num_rows, hidden]`.

        One transfer from the device; one more if samplers bias logits, and one more for canvases that proposed too many
        mask ids.
        """
        asked = []
        for canvas in canvases:
            observe = "divergence" if track_of(canvas) is not None else ""
            observe = "expected_embedding" if canvas.request.engine.smoothing else observe
            banned = canvas.request.sampler.ignores_budget or canvas.plan.first_only
            asked.append(ScoreRequest(canvas, canvas.scored(), banned, observe=observe))
        outlooks = [ScoreRequest(canvas, canvas.generated(), raw=True) for canvas in canvases if canvas.may_grow]
        self._answer(batch, [*asked, *outlooks], hidden)
        candidates = [canvas.candidates() for canvas in canvases]
        choices = [choose(question, question.scores(at)) for question, at in zip(asked, candidates, strict=True)]
        barred = [i for i, one in enumerate(choices) if needs_more(canvases[i], one)]
        if barred:
            again = [replace(asked[i], positions=candidates[i], ban_mask=True, observe="") for i in barred]
            self._answer(batch, again, hidden)
            for index, question in zip(barred, again, strict=True):
                choices[index] = choose(question, question.scores(candidates[index]))
        for canvas, question, choice in zip(canvases, asked, choices, strict=True):
            canvas.memory = choice.memory
            if canvas.request.sampler.track and not canvas.plan.probe:
                canvas.tensors["track"] = self._track(batch, question, hidden)
            if question.observe == "expected_embedding":
                canvas.tensors["expected"] = (question.positions, question.observed)
        for question in outlooks:
            if self.special.eos_id is not None:
                question.canvas.length_estimate = length_estimate(
                    question.positions, question.proposals, self.special.eos_id
                )
            if question.unsound is not None:
                index = canvases.index(question.canvas)
                choices[index] = replace(choices[index], unsound=question.unsound)
        return choices

    def _track(self, batch: Batch, question: ScoreRequest, hidden: Tensor) -> Track:
        """Track for comparison with the next forward."""
        canvas, positions = question.canvas, question.positions
        rows, *unconds = (
            hidden[upload(batch.rows(canvas, positions, uncond=uncond), hidden.device)]
            for uncond in (False, True)[: 1 + canvas.guided]
        )
        return Track(canvas.block_index, positions, rows, unconds[0] if unconds else None)

    def _answer(self, batch: Batch, questions: Sequence[ScoreRequest], hidden: Tensor) -> None:
        """Fill in the proposals, scoring requests with equal specs together."""
        groups: dict[ScoreSpec, list[ScoreRequest]] = {}
        for question in questions:
            if len(question.positions):
                groups.setdefault(question.spec(self.special), []).append(question)
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
        whole = torch.cat([part.flatten() for part in parts]).cpu()
        flat = torch.split(whole, [part.numel() for part in parts])
        for (spec, members), part, values in zip(groups.items(), parts, flat, strict=True):
            columns, first = values.view(part.shape).numpy(), 0
            for question in members:
                last = first + len(question.positions)
                question.proposals = Proposals.from_table(columns[:, first:last], spec)
                first = last

    def _rows(self, batch: Batch, members: Sequence[ScoreRequest], spec: ScoreSpec, hidden: Tensor) -> Rows:
        """The rows of requests that share a spec, on the device."""
        device = hidden.device
        rows = np.concatenate([batch.rows(one.canvas, one.positions) for one in members])
        uncond = keys = before = None
        if spec.cfg_scale:
            uncond_rows = np.concatenate([batch.rows(one.canvas, one.positions, uncond=True) for one in members])
            uncond = hidden[upload(uncond_rows, device)]
        if spec.temperature:
            row_keys = [
                noise.keys(one.canvas.seed, one.canvas.sample, one.canvas.nfe + 1, one.positions) for one in members
            ]
            keys = upload(np.concatenate(row_keys).view(np.int64), device)
        if spec.observe == "divergence":
            tracks = [(track_of(one.canvas), one.positions) for one in members]
            before = rows_of([(track, upload(track.find(at), device)) for track, at in tracks if track is not None])
        biases = boosting = None
        firsts = np.cumsum([0, *(len(one.positions) for one in members[:-1])]).tolist()
        known = [(one, one.boost, first) for one, first in zip(members, firsts, strict=True) if one.boost is not None]
        if known:
            biases = placed(known, device)
        elif spec.boosted:
            boosting = partial(learn, members, firsts, spec.unboosted)
        return Rows(hidden[upload(rows, device)], uncond, keys, biases, boosting, before)


def learn(members: Sequence[ScoreRequest], firsts: Sequence[int], spec: ScoreSpec, start: int, table: Tensor) -> Boosts:
    """Logit biases for rows `[start, start + rows)` of requests scored together, whose rows start at `firsts`, given
    their unbiased `table [6, rows]` by `spec`."""
    plain, parts = table.cpu().numpy(), []
    for question, first in zip(members, firsts, strict=True):
        begin, end = max(start, first), min(start + plain.shape[1], first + len(question.positions))
        if begin < end:
            proposals = Proposals.from_table(plain[:, begin - start : end - start], spec)
            parts.append((question, question.learn(begin - first, proposals), first - start))
    return placed(parts, table.device)


def placed(parts: Sequence[tuple[ScoreRequest, LogitBias, int]], device: torch.device) -> Boosts:
    """Biases as rows, tokens and amounts on the device, from triples of request, bias and first row."""
    rows = [np.searchsorted(question.positions, boost.rows) + first for question, boost, first in parts]
    tokens, amounts = [boost.tokens for _, boost, _ in parts], [boost.amounts for _, boost, _ in parts]
    return (
        upload(np.concatenate(rows), device),
        upload(np.concatenate(tokens), device),
        upload(np.concatenate(amounts), device),
    )


def needs_more(canvas: Canvas, choice: Selection) -> bool:
    """Whether a selection decides too few masks."""
    if canvas.request.sampler.ignores_budget or choice.unsound is not None:
        return False
    decided = int((canvas.tokens[choice.positions] == canvas.mask_id).sum())
    return decided - len(choice.cleared) < canvas.min_reveals()


def choose(question: ScoreRequest, scores: Scores) -> Selection:
    """Run the canvas's sampler, drop mask proposals, and enforce the `max_nfe` budget and the guarantee of progress.

    Fewer than `canvas.min_reveals()` masks are decided only if mask proposals prevent it.
    """
    canvas = question.canvas
    memory = question.memory if canvas.request.sampler.biases else canvas.memory
    if question.unsound is not None:
        return Selection(NONE, NONE, NONE, None, memory, unsound=question.unsound)
    if canvas.plan.probe:
        return Selection(NONE, NONE, NONE, None, memory)
    if canvas.plan.first_only:
        chosen = np.array([0])
    else:
        chosen, memory = canvas.request.sampler.select(scores, canvas.context(), memory)
    chosen = chosen[~scores.proposes_mask[chosen]]
    cleared = NONE if canvas.plan.first_only else canvas.request.sampler.remask(scores, chosen)
    if not canvas.request.sampler.ignores_budget:
        decided, min_reveals = int(scores.masked[chosen].sum()), canvas.min_reveals()
        short = min_reveals - decided
        if short > 0 and (decided or not scores.proposes_mask.any()):
            ranked = scores.descending()
            spare = ranked[scores.masked[ranked] & ~scores.proposes_mask[ranked] & ~np.isin(ranked, chosen)]
            chosen = np.concatenate((chosen, spare[:short]))
            decided += len(spare[:short])
        cleared = cleared[: max(0, decided - min_reveals)]
    logprobs = token_stats = None
    if canvas.request.params.record:
        at = np.searchsorted(question.positions, scores.positions[chosen])
        logprobs = question.proposals.logprobs[at]
        token_stats = None if question.proposals.token_stats is None else question.proposals.token_stats[:, at]
    written = scores.positions[chosen], scores.tokens[chosen], scores.positions[cleared]
    return Selection(*written, logprobs, memory, token_stats)
