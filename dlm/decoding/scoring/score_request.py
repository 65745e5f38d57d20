"""Scoring request for one canvas in one forward, and the scores passed to its sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dlm.decoding.canvas import Canvas
from dlm.decoding.layout import IntArray
from dlm.decoding.scoring.proposals import Proposals, ScoreSpec
from dlm.decoding.scoring.tracking import Track
from dlm.decoding.types import NONE, LogitBias, Scores
from dlm.models.families import SpecialTokens

NO_PROPOSALS = Proposals(NONE, *(np.zeros(0) for _ in range(3)))


@dataclass
class ScoreRequest:
    """Positions of one canvas to score in one forward, and the results.

    Attributes:
        canvas: the canvas.
        positions: positions to score, ascending.
        ban_mask: do not propose the mask id.
        raw: only the most probable tokens of the unmodified logits are needed.
        observe: what else to compute from the raw logits.
        boost: logit bias from its sampler; its rows are canvas positions. None until known.
        memory: updated memory of a sampler that biases logits.
        proposals, observed: the results.
    """

    canvas: Canvas
    positions: IntArray
    ban_mask: bool = False
    raw: bool = False
    observe: str = ""
    boost: LogitBias | None = None
    memory: Any = None
    proposals: Proposals = NO_PROPOSALS
    observed: Tensor | None = None

    def spec(self, special: SpecialTokens) -> ScoreSpec:
        """How to score its rows."""
        params, sampler = self.canvas.request.params, self.canvas.request.sampler
        if self.raw:
            return ScoreSpec("low_confidence", cfg_scale=params.cfg_scale)
        warm = params.temperature > 0
        banned = (special.eos_id,) if params.logits_eos_inf and special.eos_id is not None else ()
        return ScoreSpec(
            ranks_by=sampler.ranks_by,
            temperature=params.temperature,
            top_k=params.top_k if warm else 0,
            top_p=params.top_p if warm else 1.0,
            cfg_scale=params.cfg_scale,
            banned=(*banned, special.mask_id) if self.ban_mask else banned,
            deferred=special.end_ids if params.confidence_eos_eot_inf else (),
            record=params.record,
            token_stats=self.canvas.request.token_stats,
            boosted=sampler.biases,
            observe=self.observe,
        )

    @property
    def unsound(self) -> int | None:
        """The first position whose logits are not finite; None if there is none."""
        found = self.positions[: len(self.proposals.tokens)][self.proposals.unsound]
        return int(found[0]) if len(found) else None

    def scores(self, candidates: IntArray) -> Scores:
        """Scores of `candidates`, a subset of its positions, for the sampler."""
        canvas, proposals = self.canvas, self.proposals
        where = np.searchsorted(self.positions, candidates)
        tokens, before = proposals.tokens[where], canvas.tokens[candidates]
        uniform = canvas.uniform(canvas.block_steps, candidates)
        return Scores(
            positions=candidates,
            priority=uniform if canvas.request.sampler.ranks_by == "random" else proposals.priority[where],
            log_odds=proposals.log_odds[where],
            tokens=tokens,
            proposes_mask=tokens == canvas.mask_id,
            masked=before == canvas.mask_id,
            differs=tokens != before,
            uniform=uniform,
            divergence=self._divergence()[where],
        )

    def _divergence(self) -> npt.NDArray[np.float64]:
        """KL(p_now || p_before) of each position against the previous forward in the same block, inf if not tracked."""
        track = track_of(self.canvas)
        if self.observe != "divergence" or track is None or self.observed is None:
            return np.full(len(self.positions), np.inf)
        return np.where(track.knows(self.positions), self.observed.double().cpu().numpy(), np.inf)

    def learn(self, first: int, proposals: Proposals) -> LogitBias:
        """Query the sampler's logit bias for the positions from index `first` on, given their unbiased `proposals`. The
        bias's rows are canvas positions."""
        part = ScoreRequest(self.canvas, self.positions[first : first + len(proposals.tokens)], proposals=proposals)
        scores = part.scores(np.intersect1d(self.canvas.candidates(), part.positions))
        boost, memory = self.canvas.request.sampler.logit_bias(scores, self.canvas.memory)
        boost = LogitBias(scores.positions[boost.rows], boost.tokens, boost.amounts)
        self.boost = boost if self.boost is None else self.boost.joined(boost)
        self.memory = {**(self.memory or {}), **memory}
        return boost


def track_of(canvas: Canvas) -> Track | None:
    """Track of the previous forward, if that was in the same block."""
    track: Track | None = canvas.tensors.get("track")
    return None if track is None or track.block_index != canvas.block_index else track
