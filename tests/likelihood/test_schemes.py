"""Each scheme held to its definition on tiny models, by forwards over everything, one token at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dlm.errors import RequestError
from dlm.likelihood import SCHEMES, Ar, BlockCausal, Coupled, D1OneStep, Likelihood, LladaMC, Scheme
from dlm.likelihood.attention_layout import Blocks, HiddenState, ScoredText, Whole
from dlm.models.backbone import Backbone
from dlm.models.sizes import SIZES
from tests.likelihood.models import FAMILIES, MASK, answered, likelihood, naive, small, special
from tests.models.attention.windows import causal
from tests.rounding import of_a_forward

PROMPT, COMPLETION = (1, 2, 3), (4, 5, 6, 7, 8)
TEXT = (*PROMPT, *COMPLETION)
FIRST, STOP = len(PROMPT), len(TEXT)
ROUNDING = 20 * max(of_a_forward(small(family).backbone.config, torch.float64, len(TEXT)) for family in FAMILIES)
"""Of log-probabilities in float64 whose absolute values add up to 20 at most."""


def units(family: str) -> list[range]:
    """What is masked together: blocks of 4 from position 0, or from the end of the prompt, or all."""
    starts = {"llada2": [3, 4], "sdar": [3, 4], "nemotron": [3, 7]}.get(family, [3])
    return [range(start, stop) for start, stop in itertools.pairwise([*starts, STOP])]


def bound(family: str, unit: range) -> float:
    """The expectation over uniform k of the mean over all masks of k tokens of L / k times their log-probabilities."""
    total = 0.0
    for count in range(1, len(unit) + 1):
        masks = list(itertools.combinations(unit, count))
        sums = [sum(answered(family, TEXT, mask, place, FIRST) for place in mask) for mask in masks]
        total += float(np.mean(sums)) * len(unit) / count
    return total / len(unit)


@pytest.mark.parametrize("family", FAMILIES)
def test_llada_mc_is_unbiased_and_its_error_is_not_understated(family: str) -> None:
    """Against all masks, over 200 seeds. Stratified counts make the true error smaller than the one reported."""
    expected, scorer = sum(bound(family, unit) for unit in units(family)), likelihood(family)
    scores = [scorer.score([PROMPT], [COMPLETION], LladaMC(8), seed=seed) for seed in range(200)]
    means, errors = torch.cat([each.mean for each in scores]), torch.cat([each.stderr for each in scores])
    sigma = float(means.std())
    z = (float(means.mean()) - expected) / (sigma / len(scores) ** 0.5)
    reported = float(errors.square().mean().sqrt())
    print(f"\n{family}: exact {expected:.4f}, mean {float(means.mean()):.4f} (z {z:+.2f}), error {sigma:.3f} of one, "
          f"reported {reported:.3f}")  # fmt: skip
    assert abs(z) < 3.5
    assert 0.9 * sigma < reported < 3 * sigma


def test_llada_mc_visits_each_count_equally() -> None:
    scorer = likelihood("llada")
    plan = LladaMC(10).plan(ScoredText(np.array(TEXT), FIRST), scorer.presentation, seed=3)
    counts = [len(view.targets) for view in plan.sheet.views]
    assert sorted(counts) == sorted(2 * [1, 2, 3, 4, 5])
    of_count = np.repeat(counts, counts)
    np.testing.assert_allclose(plan.weights, 5 / of_count / 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_token_takes_one_forward_and_is_exact(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = likelihood(family)
    expected = answered(family, TEXT[:4], [3], 3, FIRST)
    asked = watched(monkeypatch)
    scores = scorer.score([PROMPT], [TEXT[3:4]], LladaMC())
    assert len(asked) == 1
    assert scores.stderr.tolist() == [0.0]
    assert scores.mean.item() == pytest.approx(expected, abs=ROUNDING)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[HiddenState]:
    """The questions put to presentations from here on."""
    seen: list[HiddenState] = []
    for kind in (Whole, Blocks):

        def watch(self: Any, target: ScoredText, questions: Sequence[HiddenState], put: Any = kind.sheet) -> Any:
            seen.extend(questions)
            return put(self, target, questions)

        monkeypatch.setattr(kind, "sheet", watch)
    return seen


def answer(family: str, question: HiddenState, tokens: Sequence[int] = TEXT) -> dict[int, float]:
    hidden = np.flatnonzero(question.hidden).tolist()
    return {int(place): answered(family, tokens, hidden, int(place), FIRST) for place in question.asked}


def scored(family: str, scheme: Scheme, seed: int = 5) -> tuple[np.ndarray, float, float]:
    """Per-token terms, mean and error."""
    scores = likelihood(family).score([PROMPT], [COMPLETION], scheme, seed=seed, per_token=True)
    assert scores.per_token is not None
    (terms,) = scores.per_token
    assert float(terms.sum()) == float(scores.mean)
    return terms.numpy(), float(scores.mean), float(scores.stderr)


@pytest.mark.parametrize("family", FAMILIES)
def test_llada_mc_terms_are_weighted_answers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = watched(monkeypatch)
    terms, _, _ = scored(family, LladaMC(6))
    expected = np.zeros(len(COMPLETION))
    for question in asked:
        (unit,) = [unit for unit in units(family) if question.asked[0] in unit]
        for place, value in answer(family, question).items():
            expected[place - FIRST] += value * len(unit) / len(question.asked) / 6
    assert len(asked) == 6 * len(units(family))
    np.testing.assert_allclose(terms, expected, atol=ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_d1_hides_the_completion_and_some_of_the_prompt(family: str) -> None:
    """The result is that of one of the eight ways to hide tokens of the prompt, not always the same."""
    everything = range(FIRST, STOP)
    prompts = {
        hidden: [answered(family, [MASK if p in hidden else t for p, t in enumerate(TEXT)], everything, place, FIRST)
                 for place in everything]
        for count in range(4) for hidden in itertools.combinations(range(FIRST), count)
    }  # fmt: skip
    met = set()
    for seed in range(12):
        terms, _, error = scored(family, D1OneStep(0.4), seed)
        assert np.isnan(error)
        (hidden,) = [hidden for hidden, values in prompts.items() if np.allclose(terms, values, atol=ROUNDING)]
        met.add(hidden)
    assert len(met) > 3
    terms, _, error = scored(family, D1OneStep(0.0))
    assert error == 0
    np.testing.assert_allclose(terms, prompts[()], atol=ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pairs", [1, 3])
def test_coupled_scores_each_token_once_in_each_pair(family: str, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = watched(monkeypatch)
    scheme = Coupled(pairs, 0.5, 0.5)
    terms, mean, error = scored(family, scheme)
    whole, *sides = asked
    assert whole.asked.tolist() == list(range(FIRST, STOP))
    expected = np.array(list(answer(family, whole).values()))
    times, draws, left = np.zeros(len(COMPLETION)), [], set(range(FIRST, STOP))
    each = np.zeros(len(COMPLETION))
    for question in sides:
        for place, value in answer(family, question).items():
            left.remove(place)
            times[place - FIRST] += 1
            each[place - FIRST] = value / 0.5
        if not left:
            draws.append((expected + pairs * each).sum() / (pairs + 1))
            left, each = set(range(FIRST, STOP)), np.zeros(len(COMPLETION))
    assert times.tolist() == [pairs] * len(COMPLETION)
    assert mean == pytest.approx(float(np.mean(draws)), abs=ROUNDING)
    if pairs > 1:
        assert error == pytest.approx(float(np.std(draws, ddof=1)) / pairs**0.5, abs=ROUNDING)
    else:
        assert np.isnan(error)
    assert len(terms) == len(COMPLETION)


@pytest.mark.parametrize("family", FAMILIES)
def test_block_causal_hides_a_block_and_all_behind_it(family: str) -> None:
    """In blocks of 4, which a bidirectional model counts from the end of the prompt."""
    starts = {"llada2": [3, 4], "sdar": [3, 4]}.get(family, [3, 7])
    expected = []
    for start, stop in itertools.pairwise([*starts, STOP]):
        expected += [answered(family, TEXT, range(start, STOP), place, FIRST) for place in range(start, stop)]
    terms, _, error = scored(family, BlockCausal(4))
    assert error == 0
    np.testing.assert_allclose(terms, expected, atol=ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_chain_terms_equal_a_naive_loop(family: str) -> None:
    """One forward a token with all from there on masked; for a causal context the causal pass."""
    expected = [answered(family, TEXT, range(place, STOP), place, FIRST) for place in range(1, STOP)]
    if family == "nemotron":
        with torch.no_grad():
            expected = naive(small(family), TEXT, causal)[range(STOP - 1), TEXT[1:]].tolist()
    for max_tokens in (8192, 10):
        scorer = likelihood(family, max_tokens=max_tokens)
        chain = scorer.score([TEXT[:1]], [TEXT[1:]], Ar(), per_token=True).per_token
        assert chain is not None
        assert chain[0].dtype == torch.float64
        np.testing.assert_allclose(chain[0].numpy(), expected, atol=ROUNDING)
    terms, _, error = scored(family, Ar())
    assert error == 0
    np.testing.assert_allclose(terms, expected[FIRST - 1 :], atol=ROUNDING)


def test_seeds_matter() -> None:
    for scheme in (LladaMC(8), D1OneStep(0.5), Coupled()):
        means = {scored("llada", scheme, seed)[1] for seed in range(6)}
        assert len(means) > 2, scheme


def test_schemes_are_registered_by_name() -> None:
    assert set(SCHEMES) == {"llada_mc", "d1_onestep", "coupled", "block_causal", "ar"}
    assert all(kind().name == name for name, kind in SCHEMES.items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LladaMC(0), "mc_num=0 must be"),
        (lambda: D1OneStep(1.5), "p_mask_prompt=1.5 must be"),
        (lambda: Coupled(0), "num_pairs=0 must be"),
        (lambda: Coupled(1, 0.0), "low=0.0 and high=0.8 must be"),
        (lambda: BlockCausal(0), "block_length=0 must be"),
        (lambda: likelihood("llada", max_tokens=0), "max_tokens=0 must be"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()


@pytest.mark.parametrize(
    ("prompts", "completions", "options", "message"),
    [
        ([(1,)], [], {}, "1 prompts and 0 completions"),
        ([()], [(1,)], {}, "the prompt is empty"),
        ([(1,)], [()], {}, "the completion is empty"),
        ([(1,), (2,)], [(1,), (3, MASK)], {}, "completion 1 contains the mask id 10"),
        ([(1,)], [(11,)], {}, "token 11 is outside the vocabulary 0..10"),
        ([(1,) * 1000], [(1,) * 25], {}, "completion of 25 tokens make 1025 positions, but the model has 1024"),
        ([(1,)], [(1,)], {"seed": -1}, "seed=-1 must be"),
        ([(1,)], [(1,)], {"gradients": True}, "no parameter of the model has requires_grad"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(
    prompts: Any, completions: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        likelihood("llada").score(prompts, completions, Ar(), **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", [Ar(), LladaMC(8), BlockCausal(4), Coupled()], ids=lambda scheme: scheme.name)
def test_in_slices_it_is_the_same_to_the_bit(family: str, scheme: Scheme) -> None:
    scorer = likelihood(family, max_tokens=10)
    whole = scorer.score([TEXT[:FIRST]], [TEXT[FIRST:]], scheme, seed=3, per_token=True)
    *waits, found = scorer.score_in_slices(TEXT[:FIRST], TEXT[FIRST:], scheme, seed=3)
    assert waits
    assert set(waits) == {None}
    assert found is not None
    assert whole.per_token is not None
    np.testing.assert_equal([found.mean, found.stderr], [whole.mean.item(), whole.stderr.item()])
    assert found.per_token.tolist() == whole.per_token[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_most_probable_token_is_told(family: str) -> None:
    """By definition: no other token in that place has more, and where it is the text's own the bits are equal."""
    scorer = likelihood(family)
    *_, found = scorer.score_in_slices(TEXT[:FIRST], TEXT[FIRST:], Ar())
    assert found is not None
    if small(family).backbone.config.attention != "bidirectional":  # what comes later is not seen
        for index, token in enumerate(found.best.tolist()):
            if token != MASK:
                alone = scorer.score([TEXT[: FIRST + index]], [[token]], Ar()).mean.item()
                assert abs(found.best_logprobs[index] - alone) < ROUNDING
    assert (found.best_logprobs >= found.per_token).all()
    own = found.best == np.array(TEXT[FIRST:])
    assert (found.best_logprobs[own] == found.per_token[own]).all()
    assert (found.best_logprobs[~own] > found.per_token[~own]).all()
    *_, drawn = scorer.score_in_slices(TEXT[:FIRST], TEXT[FIRST:], LladaMC(8))
    assert drawn is not None
    assert (drawn.best == -1).all()


def test_nothing_to_score_gives_nothing() -> None:
    scores = likelihood("llada").score([], [], Ar(), per_token=True)
    assert (len(scores.mean), len(scores.stderr), scores.per_token) == (0, 0, [])


def test_the_last_block_is_filled_up_as_far_as_the_model_reaches() -> None:
    """1,024 positions hold 204 blocks of 5 and four fifths of another."""
    text = [1, 2, 3, 4] * 256
    scores = likelihood("sdar").score([text[:1020]], [text[1020:]], BlockCausal(5))
    assert scores.mean.isfinite().all()


def test_a_shifted_model_with_blocks_is_refused() -> None:
    config = replace(SIZES["tiny_sdar"], vocab_size=11, shifted=True)
    with pytest.raises(RequestError, match="likelihoods do not support a shifted model with block_causal attention"):
        Likelihood(Backbone(config), special())
