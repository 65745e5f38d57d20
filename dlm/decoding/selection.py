"""From hidden states to what each canvas reveals: score the candidates, ask the samplers, keep the guarantees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlm.decoding import noise
from dlm.decoding.canvas import Canvas, IntArray
from dlm.decoding.packing import Batch
from dlm.decoding.samplers import Scores, Turn
from dlm.decoding.scoring import Head, Proposals, ScoreSpec, score
from dlm.models.families import SpecialTokens


@dataclass(frozen=True)
class Choice:
    """What one canvas reveals: positions, tokens and, when recorded, log-probabilities."""

    positions: IntArray
    tokens: IntArray
    logprobs: npt.NDArray[np.float64] | None


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
        """What each canvas reveals after a forward that gave `hidden [num_rows, hidden]`.

        One transfer from the device, and a second for canvases whose proposals are mask ids only.
        """
        candidates = [canvas.masked() for canvas in canvases]
        proposals = self._propose(batch, canvases, candidates, hidden, ban_mask=False)
        choices = [choose(*each) for each in zip(canvases, candidates, proposals, strict=True)]
        barred = [i for i, canvas in enumerate(canvases) if len(choices[i].positions) < canvas.demanded()]
        if barred:
            some, where = [canvases[i] for i in barred], [candidates[i] for i in barred]
            rescored = self._propose(batch, some, where, hidden, ban_mask=True)
            for index, proposal in zip(barred, rescored, strict=True):
                choices[index] = choose(canvases[index], candidates[index], proposal)
        return choices

    def _propose(
        self,
        batch: Batch,
        canvases: Sequence[Canvas],
        candidates: Sequence[IntArray],
        hidden: Tensor,
        *,
        ban_mask: bool,
    ) -> list[Proposals]:
        """What each canvas's candidates propose, scored together where the specs agree."""
        groups: dict[ScoreSpec, list[int]] = {}
        for index, canvas in enumerate(canvases):
            groups.setdefault(self._spec(canvas, ban_mask), []).append(index)
        parts: list[Tensor] = []
        for spec, members in groups.items():
            some = [(canvases[index], candidates[index]) for index in members]
            rows = np.concatenate([batch.rows(canvas, where) for canvas, where in some])
            twin = keys = None
            if spec.cfg_scale:
                twin_rows = np.concatenate([batch.rows(canvas, where, twin=True) for canvas, where in some])
                twin = hidden[upload(twin_rows, hidden.device)]
            if spec.temperature:
                row_keys = np.concatenate([noise.keys(c.seed, c.sample, c.nfe, where) for c, where in some])
                keys = upload(row_keys.view(np.int64), hidden.device)
            parts.append(score(self.model, hidden[upload(rows, hidden.device)], twin, keys, spec, self.max_rows))
        table = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).cpu().numpy()
        results: dict[int, Proposals] = {}
        first = 0
        for spec, members in groups.items():
            for index in members:
                last = first + len(candidates[index])
                results[index] = Proposals.from_table(table[:, first:last], spec)
                first = last
        return [results[index] for index in range(len(canvases))]

    def _spec(self, canvas: Canvas, ban_mask: bool) -> ScoreSpec:
        params, special = canvas.request.params, self.special
        warm = params.temperature > 0
        banned = (special.eos_id,) if params.logits_eos_inf and special.eos_id is not None else ()
        return ScoreSpec(
            order=canvas.request.sampler.order,
            temperature=params.temperature,
            top_k=params.top_k if warm else 0,
            top_p=params.top_p if warm else 1.0,
            cfg_scale=params.cfg_scale,
            banned=(*banned, special.mask_id) if ban_mask else banned,
            deferred=special.end_ids if params.confidence_eos_eot_inf else (),
            record=params.record,
        )


def choose(canvas: Canvas, candidates: IntArray, proposals: Proposals) -> Choice:
    """Ask the canvas's sampler; drop mask proposals; keep the budget of `max_nfe` and the guarantee of progress.

    Fewer positions than `canvas.demanded()` come back only when mask proposals stand in the way.
    """
    sampler, rank = canvas.request.sampler, proposals.rank
    if sampler.order == "random":
        rank = noise.uniform(noise.keys(canvas.seed, canvas.sample, canvas.nfe, candidates, noise.ORDER))
    scores = Scores(rank, proposals.log_odds, proposals.tokens == canvas.mask_id)
    revealed = canvas.block_masks - len(candidates)
    turn = Turn(canvas.block_steps, canvas.block.steps, canvas.block_masks, revealed)
    chosen, canvas.memory = sampler.select(scores, turn, canvas.memory)
    chosen = chosen[~scores.proposes_mask[chosen]]
    short = canvas.demanded() - len(chosen)
    if short > 0 and (len(chosen) or not scores.proposes_mask.any()):
        ranked = scores.descending()
        spare = ranked[~scores.proposes_mask[ranked] & ~np.isin(ranked, chosen)]
        chosen = np.concatenate((chosen, spare[:short]))
    logprobs = proposals.logprobs[chosen] if canvas.request.params.record else None
    return Choice(candidates[chosen], proposals.tokens[chosen], logprobs)


def upload(array: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """A host array on `device`, int64."""
    return torch.from_numpy(array).to(device, non_blocking=True)
