"""Estimators of a completion's log-probability. A scheme is an immutable value; `SCHEMES` maps names to classes.

Only `ar` on a causal model is an autoregressive likelihood; the others are bounds and surrogates, as documented. Masks
come from a counter-based generator, a function of (seed, draw, position): equal seeds give equal masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from dlm.decoding import noise
from dlm.decoding.layout import IntArray
from dlm.decoding.params import check_real, check_whole
from dlm.errors import RequestError
from dlm.likelihood.attention_layout import AttentionLayout, HiddenState, ScoredText
from dlm.likelihood.estimates import COMMON, Estimator

HIDES, AMOUNT, PROMPT, TURN = 0, 1, 2, 3
"""Uses of noise, passed as the generator's step: which tokens to hide, how many, which of the prompt, and in which
draw."""

DEFAULT_BLOCK = 32
"""Block length for a model without one."""


class Scheme(Protocol):
    """Chooses the canvas states to forward, and combines their log-probabilities into an estimate."""

    @property
    def name(self) -> str:
        """Its public name."""

    def plan(self, target: ScoredText, presentation: AttentionLayout, seed: int) -> Estimator:
        """The states of one target, and the weights of their scores."""


@dataclass(frozen=True)
class Asked:
    """A state to score, the weight of each of its scores, and the draw it belongs to."""

    question: HiddenState
    weight: float
    draw: int = COMMON


def _noise(seed: int, draw: int, use: int, positions: IntArray) -> npt.NDArray[np.float64]:
    """Uniform in (0, 1), `[len(positions)]`."""
    return noise.uniform(noise.keys(seed, draw, use, positions, noise.MASKS))


def _hiding(target: ScoredText, positions: IntArray) -> HiddenState:
    """State that hides and scores `positions`."""
    hidden = np.zeros(target.length, dtype=np.bool_)
    hidden[positions] = True
    return HiddenState(hidden, positions)


def _plan(target: ScoredText, presentation: AttentionLayout, asked: Sequence[Asked], num_draws: int = 0) -> Estimator:
    counts = [len(one.question.asked) for one in asked]
    return Estimator(
        presentation.sheet(target, [one.question for one in asked]),
        np.concatenate([one.question.asked for one in asked]) - target.prompt_length,
        np.repeat([one.weight for one in asked], counts),
        np.repeat([one.draw for one in asked], counts),
        num_draws,
    )


@dataclass(frozen=True)
class LladaMC:
    """The Monte Carlo bound of LLaDA (arXiv 2502.09992, equation 6 and its evaluation program): hide k of L tokens,
    weight their log-probabilities by L / k, and average over `mc_num` draws. The expectation is a lower bound of
    log p(completion | prompt).

    The counts k are spread evenly over 1..L from a random start and in random order, so each is uniform. For a model
    with blocks, each block is masked on its own after clean earlier blocks, and the bounds of the blocks add up. If no
    block has more than one token to hide, a single draw is exact.

    Attributes:
        mc_num: number of draws.
    """

    mc_num: int = 128
    name: ClassVar[str] = "llada_mc"

    def __post_init__(self) -> None:
        check_whole("mc_num", self.mc_num, 1)

    def plan(self, target: ScoredText, presentation: AttentionLayout, seed: int) -> Estimator:
        units = presentation.units(target)
        single = all(stop - start == 1 for start, stop in units)
        draws = 1 if single else self.mc_num
        asked = []
        for start, stop in units:
            length, place = stop - start, np.arange(start, stop)
            begin = int(_noise(seed, 0, AMOUNT, place[:1])[0] * length)
            turns = np.argsort([_noise(seed, draw, TURN, place[:1])[0] for draw in range(draws)], kind="stable")
            for draw, turn in enumerate(turns.tolist()):
                count = (begin + turn * length // draws) % length + 1
                order = np.argsort(_noise(seed, draw, HIDES, place), kind="stable")
                asked.append(Asked(_hiding(target, np.sort(place[order[:count]])), length / count / draws, draw))
        return _plan(target, presentation, asked, 0 if single else draws)


@dataclass(frozen=True)
class D1OneStep:
    """The per-token surrogate of diffu-GRPO (d1, arXiv 2504.12216): one forward with the whole completion hidden, and
    each prompt token with probability `p_mask_prompt`. The sum is a mean-field estimate, not a bound.

    Attributes:
        p_mask_prompt: 0..1.
    """

    p_mask_prompt: float = 0.15
    name: ClassVar[str] = "d1_onestep"

    def __post_init__(self) -> None:
        check_real("p_mask_prompt", self.p_mask_prompt, 0.0, 1.0)

    def plan(self, target: ScoredText, presentation: AttentionLayout, seed: int) -> Estimator:
        place = np.arange(target.prompt_length)
        hidden = place[_noise(seed, 0, PROMPT, place) < self.p_mask_prompt]
        tokens = target.tokens.copy()
        tokens[hidden] = presentation.mask_id
        whole = _hiding(target, target.completion)
        return _plan(replace(target, tokens=tokens), presentation, [Asked(whole, 1.0)], int(self.p_mask_prompt > 0))


@dataclass(frozen=True)
class Coupled:
    """The surrogate of coupled-GRPO (DiffuCoder, arXiv 2506.20639): pairs of complementary masks score each token once
    per pair, weighted by 1 / mask ratio, and once with everything hidden. The sum is divided by `num_pairs` + 1, as in
    the program: a pair weights a token about twice, so this is for ratios between policies, not a likelihood.

    Attributes:
        num_pairs: number of pairs.
        low, high: range of a pair's first mask ratio, drawn uniformly; above 0 and below 1.
    """

    num_pairs: int = 1
    low: float = 0.2
    high: float = 0.8
    name: ClassVar[str] = "coupled"

    def __post_init__(self) -> None:
        check_whole("num_pairs", self.num_pairs, 1)
        if not 0.0 < self.low <= self.high < 1.0:
            raise RequestError(f"low={self.low!r} and high={self.high!r} must be numbers with 0 < low <= high < 1")

    def plan(self, target: ScoredText, presentation: AttentionLayout, seed: int) -> Estimator:
        place, share = target.completion, 1.0 / (self.num_pairs + 1)
        asked = [Asked(_hiding(target, place), share)]
        for draw in range(self.num_pairs):
            ratio = self.low + (self.high - self.low) * float(_noise(seed, draw, AMOUNT, place[:1])[0])
            first = _noise(seed, draw, HIDES, place) < ratio
            sides = ((place[first], ratio), (place[~first], 1.0 - ratio))
            asked += [Asked(_hiding(target, side), share / part, draw) for side, part in sides if len(side)]
        return _plan(target, presentation, asked, self.num_pairs)


@dataclass(frozen=True)
class BlockCausal:
    """Scores each block fully hidden after clean earlier blocks, later ones hidden (bidirectional models) or absent
    (models with blocks). Tokens within a block are treated as independent given the earlier blocks.

    Attributes:
        block_length: None is the model's block length, or 32 if it has none.
    """

    block_length: int | None = None
    name: ClassVar[str] = "block_causal"

    def __post_init__(self) -> None:
        if self.block_length is not None:
            check_whole("block_length", self.block_length, 1)

    def plan(self, target: ScoredText, presentation: AttentionLayout, seed: int) -> Estimator:
        size = self.block_length or presentation.block_length or DEFAULT_BLOCK
        shown, place = replace(presentation, block_length=size), np.arange(target.length)
        asked = [Asked(HiddenState(place >= at, place[at:stop]), 1.0) for at, stop in shown.units(target)]
        return _plan(target, shown, asked)


@dataclass(frozen=True)
class Ar:
    """Left-to-right chain terms: each token scored with itself and all later ones hidden, one forward per token. Models
    with a causal context need only one causal pass."""

    name: ClassVar[str] = "ar"

    def plan(self, target: ScoredText, presentation: AttentionLayout, seed: int) -> Estimator:
        place = target.completion
        common = np.full(len(place), COMMON)
        sheet = presentation.chain(target, place)
        return Estimator(sheet, place - target.prompt_length, np.ones(len(place)), common, 0)


SCHEMES: dict[str, type[Scheme]] = {scheme.name: scheme for scheme in (LladaMC, D1OneStep, Coupled, BlockCausal, Ar)}
