"""What is asked of the logits about one canvas in one forward, and what its sampler sees of the answer."""

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
    """What is asked about one canvas in one forward, and what came back.

    Attributes:
        canvas: which.
        positions: those to score, ascending.
        ban_mask: the mask id may not be proposed.
        raw: the most probable tokens of the logits as they are are wanted, and nothing else.
        observe: also wanted of the raw logits.
        boost: what its sampler adds to single logits; its rows are positions of the canvas. None until it is known.
        memory: with a sampler that boosts what it remembers from here.
        proposals, observed: the answer.
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
        """How its rows are scored."""
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
        """The first position whose logits are not finite; None where there is none."""
        found = self.positions[: len(self.proposals.tokens)][self.proposals.unsound]
        return int(found[0]) if len(found) else None

    def scores(self, candidates: IntArray) -> Scores:
        """What the sampler sees of `candidates`, which are among its positions."""
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
        """KL(p_now || p_before) of each position against the forward before in the same block, where it is tracked."""
        track = track_of(self.canvas)
        if self.observe != "divergence" or track is None or self.observed is None:
            return np.full(len(self.positions), np.inf)
        return np.where(track.knows(self.positions), self.observed.double().cpu().numpy(), np.inf)

    def learn(self, first: int, proposals: Proposals) -> LogitBias:
        """Let the sampler say what it adds to the logits of the positions from index `first` on, for which it is known
        what they propose without. Its rows are positions of the canvas."""
        part = ScoreRequest(self.canvas, self.positions[first : first + len(proposals.tokens)], proposals=proposals)
        scores = part.scores(np.intersect1d(self.canvas.candidates(), part.positions))
        boost, memory = self.canvas.request.sampler.logit_bias(scores, self.canvas.memory)
        boost = LogitBias(scores.positions[boost.rows], boost.tokens, boost.amounts)
        self.boost = boost if self.boost is None else self.boost.joined(boost)
        self.memory = {**(self.memory or {}), **memory}
        return boost


def track_of(canvas: Canvas) -> Track | None:
    """What was kept of the forward before, if that was in the same block."""
    track: Track | None = canvas.tensors.get("track")
    return None if track is None or track.block_index != canvas.block_index else track
