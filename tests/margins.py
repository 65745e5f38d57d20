"""Whether rounding alone explains that a float32 decoding leaves the course of a float64 one.

A product in float32 is what exact arithmetic gives for weights that are off by at most lambda sqrt(n) u each, relative
to their size, where n numbers are summed and u = 2^-24 (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019; lambda = 2
here). So the float64 decoding is repeated with weights that are off by so much at random, and how far the numbers at a
step move is the rounding of everything that was computed up to it: the depth, width and magnitudes of the model, the
caches, and inputs that depend on earlier forwards (iteration smoothing amplifies it from step to step, from 1e-5 in
the logits to more than 1 within some 20 forwards of the tiny models here). A greedy decoding that differs is excused at
the first step where it shows, if

* up to it the float32 numbers are off by no more than that at any step,
* they are the reason: the sampler, given them, chooses as in float32, and
* the margin of the float64 choice is no larger than what its two sides may move together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dlm.decoding.types import Scores
from dlm.models.backbone import Backbone
from dlm.models.families import SpecialTokens
from tests.decisions import Decision, decisions, first_difference

ROUNDING = 2 * 2.0**-24
"""lambda u."""
REPLAYS = 16
"""Float64 decodings with weights that are off."""
SHRUNK = 2.0**-12
"""Where a replay leaves the course too early it is made again with so much of the noise, what moves being scaled up."""

Limits = dict[str, float]
Gap = tuple[str, float, float]
"""What is apart, how far in float64, and how far rounding may bring it together."""


@dataclass(frozen=True)
class Verdict:
    """Whether a difference is excused, and its margin, or what speaks against it."""

    excused: bool
    reason: str


def judge(backbone: Backbone, special: SpecialTokens, exact: Sequence[Decision], single: Sequence[Decision]) -> Verdict:
    """Whether rounding explains that a request was decoded otherwise in float32.

    Args:
        backbone: the model in float64.
        special: its special tokens.
        exact: the decisions of the request alone in float64.
        single: those in float32.
    """
    index = first_difference(exact, single)
    if index is None:
        return Verdict(False, "decoded alone, float32 decides as float64 does")
    if index >= min(len(exact), len(single)) or exact[index].tokens != single[index].tokens:
        return Verdict(False, f"decision {index + 1}: the choices before were equal, the canvases are not")
    limits = bounds(backbone, special, exact[: index + 1])
    for one, other, allowed in zip(exact, single, limits, strict=False):
        off = deviations(one, other)
        for name, limit in allowed.items():
            if off[name] > limit:
                text = f"{name} off by {off[name]:.1e} in float32, rounding explains {limit:.1e}"
                return Verdict(False, f"step {one.step}: {text}")
    mine, theirs, where = exact[index], single[index], f"step {exact[index].step}"
    if theirs.left_behind(mine.rechosen(theirs.scores)) != theirs.left_behind():
        return Verdict(False, f"{where}: given the float32 numbers, the sampler chooses otherwise than in float32")
    gaps = list(gaps_between(mine, theirs, limits[index]))
    for text, gap, limit in gaps:
        if gap > limit:
            return Verdict(False, f"{where}: {text} {gap:.1e} apart, rounding explains {limit:.1e}")
    texts = (f"{text} {gap:.1e} apart, rounding explains {limit:.1e}" for text, gap, limit in gaps)
    return Verdict(True, f"{where}: {'; '.join(texts)}")


@torch.no_grad()
def off_by_rounding(backbone: Backbone, seed: int, share: float = 1.0) -> Backbone:
    """A copy whose weights are off by `share` of what float32 may cost them."""
    generator, other = torch.Generator().manual_seed(seed), copy.deepcopy(backbone)
    for weights in other.parameters():
        noise = 2 * torch.rand(weights.shape, generator=generator, dtype=weights.dtype) - 1
        weights.mul_(1 + share * ROUNDING * math.sqrt(weights.shape[-1]) * noise)
    return other


def bounds(backbone: Backbone, special: SpecialTokens, exact: Sequence[Decision]) -> list[Limits]:
    """How far rounding may move each quantity of each of the first decisions of a float64 decoding."""
    request, last = exact[-1].question.canvas.request, len(exact) - 1
    limits = [dict.fromkeys(decision.quantities, 0.0) for decision in exact]
    for seed in range(REPLAYS):
        for share in (1.0, SHRUNK):
            replay = decisions(off_by_rounding(backbone, seed, share), special, request)[: last + 1]
            turned = first_difference(exact, replay)
            along = last if turned is None else turned
            for allowed, one, other in zip(limits[: along + 1], exact, replay, strict=False):
                for name, moved in deviations(one, other).items():
                    allowed[name] = max(allowed[name], moved / share)
            if along == last:
                break
    return limits


def deviations(one: Decision, other: Decision) -> Limits:
    """The largest difference of each quantity between decisions about the same candidates."""
    found = {}
    for name, mine in one.quantities.items():
        theirs = other.quantities[name]
        with np.errstate(invalid="ignore"):
            found[name] = float(np.where(mine == theirs, 0.0, abs(mine - theirs)).max(initial=0.0))
    return found


def gaps_between(exact: Decision, single: Decision, limits: Limits) -> Iterator[Gap]:
    """The margins of the exact decision in what the other one decides otherwise: first between tokens, then of what the
    sampler makes of the scores."""
    where = exact.scores.positions.tolist()
    for name, logits, mine, theirs in (
        ("logits", exact.logits, exact.favourites, single.favourites),
        ("boosted logits", exact.boosted, exact.scores.tokens.tolist(), single.scores.tokens.tolist()),
    ):
        for row, (best, other) in enumerate(zip(mine, theirs, strict=True)):
            if best != other:
                text = f"{name} of tokens {best} and {other} at position {where[row]}"
                yield text, float(logits[row, best] - logits[row, other]), 2 * limits[name]
    told = single.scores
    scores = replace(exact.scores, tokens=told.tokens, proposes_mask=told.proposes_mask, differs=told.differs)
    before = single.left_behind(exact.rechosen(scores))
    if before != single.left_behind():
        yield _nearest(exact, single, scores, limits)


def _nearest(exact: Decision, single: Decision, scores: Scores, limits: Limits) -> Gap:
    """The least shift of one candidate that turns the choice, of those that are chosen by one side alone: how far it is
    from the next candidate or from the bar."""
    mine, theirs = set(exact.choice.positions.tolist()), set(single.choice.positions.tolist())
    disputed = (mine ^ theirs) | set(exact.choice.cleared) ^ set(single.choice.cleared)
    rows = np.flatnonzero(np.isin(scores.positions, list(disputed))) if disputed else range(len(scores.positions))
    shares = {int(row): _turning_share(exact, scores, limits, int(row)) for row in rows}
    row = min(shares, key=lambda one: shares[one])
    ranked = exact.question.canvas.request.sampler.ranks_by
    name = "log-odds" if ranked in ("low_confidence", "random") else "priority"
    text = f"{name} of position {scores.positions[row]} and of its bar or rival"
    return text, shares[row] * limits[name], 2 * limits[name]


def _turning_share(exact: Decision, scores: Scores, limits: Limits, row: int) -> float:
    """The least multiple of the limits, up to 2, by which the scores of candidate `row` must move to turn the choice;
    inf where that is not enough."""
    before = exact.left_behind(exact.rechosen(scores))

    def turns(share: float) -> bool:
        moved = {}
        named = {"priority": ("priority", 1), "log_odds": ("log-odds", -1), "divergence": ("divergence", -1)}
        for field, (name, sign) in named.items():
            moved[field] = getattr(scores, field).copy()
            moved[field][row] += sign * share * limits[name]
        return exact.left_behind(exact.rechosen(replace(scores, **moved))) != before

    found = math.inf
    for direction in (1.0, -1.0):
        if turns(2 * direction):
            low, high = 0.0, 2.0
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (low, middle) if turns(middle * direction) else (middle, high)
            found = min(found, high)
    return found
