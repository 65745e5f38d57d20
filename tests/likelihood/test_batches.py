"""What a text is scored with does not matter: not to its bits, and not to the memory it takes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.likelihood import Ar, BlockCausal, Coupled, D1OneStep, Likelihood, LladaMC, Scheme
from dlm.models.architecture import ROW_TILE
from dlm.models.attention import NaiveAttention
from dlm.models.backbone import Backbone
from tests.decoding.worlds import BY_NAME
from tests.likelihood.models import FAMILIES, likelihood, special

SCHEMES: tuple[Scheme, ...] = (LladaMC(7), D1OneStep(0.3), Coupled(2), BlockCausal(8), Ar())
Pair = tuple[list[int], list[int]]


def pairs(seed: str, count: int, longest: int = 40) -> list[Pair]:
    chance = random.Random(seed)
    lengths = [(chance.randint(1, longest), chance.randint(1, longest)) for _ in range(count)]
    return [tuple([chance.randrange(9) for _ in range(size)] for size in both) for both in lengths]  # type: ignore[misc]  # two


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_invariance_of_scores(family: str, dtype: str) -> None:
    """Alone, and in any order in batches of any size, the same bits."""
    model, chance = BY_NAME[family].checkpoint(dtype), random.Random(family)
    pool = pairs(family, 9)

    def score(chosen: list[Pair], scheme: Scheme, **limits: Any) -> list[tuple[float, ...]]:
        scorer = Likelihood(model.backbone, model.special, **limits)
        scores = scorer.score(*zip(*chosen, strict=True), scheme, seed=4, per_token=True)
        assert scores.per_token is not None
        rows = zip(scores.mean.tolist(), scores.stderr.nan_to_num(-1).tolist(), scores.per_token, strict=True)
        return [(mean, error, *terms.tolist()) for mean, error, terms in rows]

    for scheme in SCHEMES:
        alone = [score([pair], scheme)[0] for pair in pool]
        for _ in range(3):
            mix = chance.sample(range(len(pool)), chance.randint(2, len(pool)))
            limits = {"max_tokens": chance.choice([30, 300, 8192]), "logits_mib": chance.choice([0.05, 1.0])}
            assert score([pool[index] for index in mix], scheme, **limits) == [alone[index] for index in mix]


def chain(scorer: Likelihood, token_ids: list[int]) -> Tensor:
    """Left-to-right terms of all but the first token."""
    terms = scorer.score([token_ids[:1]], [token_ids[1:]], Ar(), per_token=True).per_token
    assert terms is not None
    return terms[0]


@pytest.mark.parametrize("family", ["llada", "sdar", "nemotron"])
def test_invariance_of_replays_and_chains(family: str) -> None:
    model, chance = BY_NAME[family].checkpoint(), random.Random(family)
    for prompt, canvas in pairs(family, 6):
        steps = [chance.randint(1, 5) for _ in canvas]
        replays, chains = [], []
        for max_tokens in (20, 200, 8192):
            scorer = Likelihood(model.backbone, model.special, max_tokens=max_tokens)
            replays.append(scorer.replay_logprobs(prompt, canvas, steps))
            chains.append(chain(scorer, [*prompt, *canvas]))
        assert all(torch.equal(each, replays[0]) for each in replays)
        assert all(torch.equal(each, chains[0]) for each in chains)


class Watch:
    """Sizes of what a model is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.logits: list[int] = []
        forward, head = Backbone.forward, Backbone.head

        def see(backbone: Backbone, token_ids: Tensor, *rest: Any) -> Tensor:
            self.rows.append(len(token_ids))
            return forward(backbone, token_ids, *rest)

        def read(backbone: Backbone, hidden: Tensor) -> Tensor:
            self.logits.append(len(hidden))
            return head(backbone, hidden)

        monkeypatch.setattr(Backbone, "forward", see)
        monkeypatch.setattr(Backbone, "head", read)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_is_bounded(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a forward by `max_tokens`, rows of logits by `logits_mib`; the same with gradients and in the backward
    pass. Only rows that are asked for have logits."""
    watch = Watch(monkeypatch)
    model = BY_NAME[family].checkpoint()
    row = model.backbone.config.vocab_size * 4
    scorer = Likelihood(model.backbone, model.special, max_tokens=300, logits_mib=12 * row / 2**20)
    pool = pairs(family, 5)
    plans = [LladaMC(16).plan(scorer._target(*pair), scorer.presentation, 0) for pair in pool]
    scorer.score(*zip(*pool, strict=True), LladaMC(16))
    assert max(watch.logits) == 12
    places = sum(len(plan.places) for plan in plans)
    assert places <= sum(watch.logits) < places + ROW_TILE * len(watch.rows)  # rounded up to whole tiles
    assert max(watch.rows) <= 300
    assert len(watch.rows) > 5

    forwards = len(watch.rows)
    model.backbone.requires_grad_(True)
    scores = scorer.score(*zip(*pool, strict=True), LladaMC(16), gradients=True)
    assert len(watch.rows) == 2 * forwards
    scores.mean.sum().backward()
    model.backbone.requires_grad_(False).zero_grad()
    assert len(watch.rows) == 3 * forwards
    assert max(watch.logits) == 12
    assert sum(watch.logits) >= 3 * places
    assert max(watch.rows) <= 300


def test_a_view_longer_than_a_batch_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    chain(likelihood("llada", max_tokens=5), [1, 2, 3, 4, 5, 6, 7, 8])
    assert watch.rows == [8] * 7


def test_views_of_one_text_share_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 tokens in blocks of 4: the clean text once and a block for each token, not the text for each."""
    watch = Watch(monkeypatch)
    chain(likelihood("sdar"), [1] * 64)
    assert watch.rows == [60 + 63 * 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_any_backend_serves(family: str) -> None:
    """The definition of attention gives the same."""
    backbone = likelihood(family).backbone
    written_out = Likelihood(backbone, special(), backend=NaiveAttention)
    for scheme in SCHEMES:
        given = ([[1, 2, 3, 4, 5, 6]], [[1, 2, 3, 4, 5, 6, 7, 8, 0]], scheme)
        torch.testing.assert_close(written_out.score(*given).mean, likelihood(family).score(*given).mean)
