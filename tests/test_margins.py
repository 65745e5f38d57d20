"""Differences are planted, and only those that rounding can make are excused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dlm.decoding.engines import DualCache, Engine, Full, Smooth
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Credit, Fixed, Sampler, Threshold
from dlm.models.backbone import Backbone
from dlm.models.families import SpecialTokens
from tests.decisions import Decision, decisions, first_difference
from tests.margins import judge
from tests.vectors import Unsupported, checkpoint

SPECIAL = SpecialTokens(511, 510)
PROMPT = (3, 141, 59, 26, 5, 358)
Change = Callable[[Backbone], None]


def model(dtype: torch.dtype = torch.float64, change: Change | None = None) -> Backbone:
    loaded = checkpoint("llada", "float64")
    assert not isinstance(loaded, Unsupported)
    backbone = copy.deepcopy(loaded.backbone)
    if change is not None:
        with torch.no_grad():
            change(backbone)
    return backbone.to(dtype)


def course(backbone: Backbone, sampler: Sampler, engine: Engine | None = None, steps: int = 16) -> list[Decision]:
    params = SamplingParams(gen_length=16, steps=steps, block_length=16, temperature=0.0)
    return decisions(backbone, SPECIAL, Request("planted", PROMPT, params, engine or Full(), sampler))


def bar_between(one: Backbone, other: Backbone) -> tuple[Threshold, int]:
    """A threshold that a candidate of the first step meets with one of two models alone, and that candidate's
    position."""
    mine, theirs = (course(backbone, Threshold(1.0))[0].scores for backbone in (one, other))
    apart = np.where(mine.tokens == theirs.tokens, abs(mine.confidence - theirs.confidence), 0.0)
    apart[mine.descending()[0]] = 0.0
    at = int(apart.argmax())
    return Threshold(float(mine.confidence[at] + theirs.confidence[at]) / 2), int(mine.positions[at])


def test_a_confidence_at_the_bar_is_excused_and_its_margin_named() -> None:
    exact, single = model(), model(torch.float32)
    sampler, position = bar_between(exact, single)
    verdict = judge(exact, SPECIAL, course(exact, sampler), course(single, sampler))
    assert verdict.excused, verdict.reason
    assert verdict.reason.startswith(f"step 1: log-odds of position {position} ")
    assert 0 < float(verdict.reason.split(" apart")[0].split()[-1]) < 1e-4


@pytest.mark.parametrize("sampler", [Fixed(), Credit()], ids=["fixed", "credit"])
@pytest.mark.parametrize("engine", [Full(), DualCache(), Smooth(Full())], ids=["full", "dual_cache", "smooth"])
def test_two_tokens_as_good_as_each_other_are_excused_and_named(engine: Engine, sampler: Sampler) -> None:
    """One leads in one model and the other in the other, by what float32 cannot hold."""
    best, rival = int(course(model(), sampler, engine)[0].choice.tokens[0]), 509

    def lead(by: float) -> Change:
        def change(backbone: Backbone) -> None:
            backbone.lm_head.weight[rival] = backbone.lm_head.weight[best] * (1 + by)

        return change

    exact, single = model(change=lead(1e-9)), model(change=lead(-1e-9))
    verdict = judge(exact, SPECIAL, course(exact, sampler, engine, 2), course(single, sampler, engine, 2))
    assert verdict.excused, verdict.reason
    assert f"logits of tokens {rival} and {best} at position " in verdict.reason


def test_another_threshold_is_not_excused() -> None:
    exact, single = model(), model(torch.float32)
    verdict = judge(exact, SPECIAL, course(exact, Threshold(0.9)), course(single, Threshold(0.4)))
    assert not verdict.excused
    assert "the sampler chooses otherwise" in verdict.reason


def head_off(backbone: Backbone) -> None:
    """Logits of about 10 are off by 1e-2."""
    noise = torch.rand(backbone.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    backbone.lm_head.weight.mul_(1 + 5e-3 * noise)


def half_precision(backbone: Backbone) -> None:
    for weights in backbone.parameters():
        weights.copy_(weights.bfloat16())


@pytest.mark.parametrize("change", [head_off, half_precision])
def test_logits_off_by_more_than_rounding_are_not_excused(change: Change) -> None:
    exact, single = model(), model(torch.float32, change)
    sampler, _ = bar_between(exact, single)
    verdict = judge(exact, SPECIAL, course(exact, sampler), course(single, sampler))
    assert not verdict.excused
    assert verdict.reason.startswith("step 1: logits off by ")


def test_what_is_fed_back_wrongly_is_seen_where_it_arises() -> None:
    """Iteration smoothing amplifies rounding from step to step, and an error as well: it is not lost in that."""
    exact, single = model(), model(torch.float32)
    mine = course(exact, Fixed(), Smooth(Full(), cont_weight=0.6, cont_weight_init=0.3))
    theirs = course(single, Fixed(), Smooth(Full(), cont_weight=0.6, cont_weight_init=0.31))
    turned = first_difference(mine, theirs)
    assert turned is not None
    assert turned > 1
    verdict = judge(exact, SPECIAL, mine, theirs)
    assert not verdict.excused
    assert verdict.reason.startswith("step 2: ")


def test_equal_courses_leave_nothing_to_excuse() -> None:
    exact = model()
    assert not judge(exact, SPECIAL, course(exact, Fixed()), course(model(torch.float32), Fixed())).excused
