"""How the log-probability of a completion is estimated. A scheme is a value; `SCHEMES` holds their kinds by name.

None but `ar` on a causal model is an autoregressive likelihood: these are bounds and surrogates, as stated with each.
Masks come from the counter-based generator, a function of (seed, draw, position): equal seeds mask equally.
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
"""What noise is for, in the generator's place for a step: which tokens are hidden, how many, which of the prompt, and
in which draw."""

DEFAULT_BLOCK = 32
"""Block length for a model that has none."""


class Scheme(Protocol):
    """Says which states of a canvas are forwarded, and how their log-probabilities make an estimate."""

    @property
    def name(self) -> str:
        """What users call it."""

    def plan(self, target: ScoredText, presentation: AttentionLayout, seed: int) -> Estimator:
        """The states of one target, and the weights of what is asked in them."""


@dataclass(frozen=True)
class Asked:
    """A question, what each answer weighs, and the draw that it belongs to."""

    question: HiddenState
    weight: float
    draw: int = COMMON


def _noise(seed: int, draw: int, use: int, positions: IntArray) -> npt.NDArray[np.float64]:
    """Uniform in (0, 1), `[len(positions)]`."""
    return noise.uniform(noise.keys(seed, draw, use, positions, noise.MASKS))


def _hiding(target: ScoredText, positions: IntArray) -> HiddenState:
    """The given positions are hidden and asked for."""
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
    """The Monte Carlo bound of LLaDA (arXiv 2502.09992, equation 6 and its evaluation program): k of L tokens are
    hidden, their log-probabilities weigh L / k, and `mc_num` draws are averaged. The expectation is a lower bound of
    log p(completion | prompt).

    The counts k are spread evenly over 1..L from a random start and come in random order, so that each is uniform. A
    model with blocks is shown each block after the clean ones before it, masked within the block alone, and the bounds
    of the blocks add up. One draw is made where no block has more than one token to hide: it is exact.

    Attributes:
        mc_num: draws.
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
    """The per-token surrogate of diffu-GRPO (d1, arXiv 2504.12216): the whole completion is hidden and each token of
    the prompt with probability `p_mask_prompt`; one forward. Its sum is a mean-field estimate, no bound.

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
    """The surrogate of coupled-GRPO (DiffuCoder, arXiv 2506.20639): pairs of complementary masks, so that each token is
    scored once in each pair, weighing 1 / its mask's ratio; and once with everything hidden. The sum of these scores
    over `num_pairs` + 1, as in the program: a pair weighs a token about twice, so that this is for ratios between
    policies and no estimate of a likelihood.

    Attributes:
        num_pairs: pairs.
        low, high: a pair's first ratio is uniform between them, above 0 and below 1.
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
    """Each block with those before it clean and itself hidden, and all that comes later hidden (a bidirectional model)
    or not shown (a model with blocks). The tokens of a block are taken as independent given those before it.

    Attributes:
        block_length: None is the model's own, 32 for one that has none.
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
    """Left-to-right chain terms: each token with itself and all later ones hidden, one forward a token. Models with a
    causal context are asked in one causal pass."""

    name: ClassVar[str] = "ar"

    def plan(self, target: ScoredText, presentation: AttentionLayout, seed: int) -> Estimator:
        place = target.completion
        common = np.full(len(place), COMMON)
        sheet = presentation.chain(target, place)
        return Estimator(sheet, place - target.prompt_length, np.ones(len(place)), common, 0)


SCHEMES: dict[str, type[Scheme]] = {scheme.name: scheme for scheme in (LladaMC, D1OneStep, Coupled, BlockCausal, Ar)}
