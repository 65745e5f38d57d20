"""Each sampler against examples worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dlm.decoding.samplers import (
    Credit,
    DInferThreshold,
    Dream,
    EntropyBound,
    Factor,
    FastDLLMDream,
    Fixed,
    Hierarchy,
    Klass,
    Leftmost,
    LLaDA2,
    LLaDA21Edit,
    Sampler,
    Sdar,
    Threshold,
)
from dlm.decoding.samplers.block_diffusion import quota
from dlm.decoding.samplers.dream import transfer_shares
from dlm.decoding.types import Scores, StepContext
from tests.rounding import of_products

ROUNDING = of_products(torch.float32, 1, 1, 1, 1)
"""Of a formula of a few operations."""


def scores(confidence: list[float], **changes: Any) -> Scores:
    """Candidates from position 10 on with these confidences, each proposing a token of its own."""
    c = np.array(confidence)
    odds, size = np.log1p(-c) - np.log(c), len(c)
    return replace(
        Scores(
            positions=np.arange(10, 10 + size),
            priority=-odds,
            log_odds=odds,
            tokens=np.arange(size),
            proposes_mask=np.zeros(size, dtype=bool),
            masked=np.ones(size, dtype=bool),
            differs=np.ones(size, dtype=bool),
            uniform=np.full(size, 0.5),
            divergence=np.full(size, np.inf),
        ),
        **{name: np.array(value) for name, value in changes.items()},
    )


def turn(
    step: int, left: int, *, steps: int = 4, masks: int = 6, floor: float = 0.0, gen_length: int = 64
) -> StepContext:
    return StepContext(step, steps, masks, left, block_length=masks, gen_length=gen_length, floor=floor)


def chosen(sampler: Sampler, given: Scores, now: StepContext | None = None, memory: Any = None) -> list[int]:
    return sorted(int(i) for i in sampler.select(given, now or turn(0, 6), memory)[0])


def test_threshold_takes_all_above_the_bar_and_always_the_best() -> None:
    assert chosen(Threshold(0.9), scores([0.95, 0.2, 0.91, 0.89])) == [0, 2]
    assert chosen(Threshold(0.9), scores([0.1, 0.3, 0.3])) == [1]


@pytest.mark.parametrize("sampler", [Threshold(0.5), DInferThreshold(0.5), Credit(0.5), Hierarchy(0.5, 1.0)])
def test_an_engine_can_raise_the_threshold(sampler: Sampler) -> None:
    given = scores([0.95, 0.6, 0.91])
    assert chosen(sampler, given, turn(0, 3)) == [0, 1, 2]
    assert chosen(sampler, given, turn(0, 3, floor=0.9)) == [0, 2]


def test_factor_takes_the_prefix_and_all_when_the_last_fails() -> None:
    assert chosen(Factor(1.0), scores([0.5, 0.9, 0.7, 0.1])) == [1, 2]
    assert chosen(Factor(1.0), scores([0.9, 0.8, 0.1])) == [0, 1, 2]
    assert chosen(Factor(0.1), scores([0.9, 0.8, 0.7])) == [0]


def test_dinfer_threshold_takes_near_ties_and_no_masks() -> None:
    assert chosen(DInferThreshold(0.9), scores([0.5, 0.500005, 0.4])) == [0, 1]
    assert chosen(DInferThreshold(0.9), scores([0.99, 0.5, 0.3], proposes_mask=[True, False, False])) == [1]


def test_fixed_follows_the_schedule_and_catches_up() -> None:
    given = scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    quotas = [len(chosen(Fixed(), given, turn(step, left))) for step, left in ((0, 6), (1, 4), (2, 2), (3, 1))]
    assert quotas == [2, 2, 1, 1]
    assert chosen(Fixed(), given, turn(1, 5)) == [3, 4, 5]
    assert chosen(Fixed(), scores([0.3, 0.3, 0.3]), turn(3, 1)) == [0]


def test_leftmost_takes_the_leftmost() -> None:
    assert chosen(Leftmost(), scores([0.1, 0.9])) == [0]


RUNS = [10, 11, 12, 15, 16, 20]
"""Three runs of neighbouring masks."""


@pytest.mark.parametrize(
    ("sampler", "confidence", "expected"),
    [
        (Hierarchy(0.9, 0.4), [0.5, 0.6, 0.3, 0.2, 0.3, 0.45], [1, 5]),  # the second run's best is not sure enough
        (Hierarchy(0.9, 0.4), [0.5, 0.6, 0.95, 0.91, 0.92, 0.1], [2, 3, 4]),  # above the threshold beside the best
        (Hierarchy(0.9, 0.4), [0.6, 0.6, 0.3, 0.2, 0.1, 0.1], [0, 1]),  # ties inside a run go together
        (Hierarchy(0.9, 0.4), [0.1, 0.2, 0.3, 0.3, 0.1, 0.1], [2]),  # no run is sure: the block's best, the lower one
        (Hierarchy(0.9, 0.6), [0.6, 0.1, 0.1, 0.1, 0.5, 0.6], [0]),  # strictly above
        (Hierarchy(0.9, 0.0), [0.1, 0.2, 0.3, 0.05, 0.06, 0.01], [2, 4, 5]),  # every run's best
        (Hierarchy(1.0, 0.4), [0.99, 0.98, 0.3, 0.2, 0.3, 0.45], [0, 5]),  # nothing but the runs' best
        (Hierarchy(1.0, 0.0), [0.99, 0.98, 0.3, 0.2, 0.3, 0.01], [0, 4, 5]),
    ],
)
def test_hierarchy(sampler: Hierarchy, confidence: list[float], expected: list[int]) -> None:
    assert chosen(sampler, scores(confidence, positions=RUNS)) == expected


def test_credit_gathers_decays_and_dies_with_the_block() -> None:
    sampler = Credit(0.9, credit_alpha=0.5, boost_gamma=0.5, decay_beta=0.8)
    first, memory = sampler.logit_bias(scores([0.25, 0.64], tokens=[3, 4]), None)
    assert (first.rows.tolist(), first.tokens.tolist()) == ([0, 1], [3, 4])
    np.testing.assert_allclose(first.amounts, 0.5 * np.log1p([0.5, 0.8]), rtol=1e-14)
    # Position 10 is won by another token, position 11 by the same one.
    second, memory = sampler.logit_bias(scores([0.36, 0.81], tokens=[5, 4]), memory)
    assert (second.rows.tolist(), second.tokens.tolist()) == ([0, 0, 1], [3, 5, 4])
    np.testing.assert_allclose(second.amounts, 0.5 * np.log1p([0.5 * 0.8, 0.6, 0.8 * 0.8 + 0.9]), rtol=1e-14)
    assert {place: set(tokens) for place, tokens in memory.items()} == {10: {3, 5}, 11: {4}}
    # Position 10 is decided: its credit is kept by nobody's logits.
    third, _ = sampler.logit_bias(scores([0.49], positions=[11], tokens=[4]), memory)
    assert (third.rows.tolist(), third.tokens.tolist()) == ([0], [4])
    np.testing.assert_allclose(third.amounts, 0.5 * np.log1p([1.54 * 0.8 + 0.7]), rtol=1e-14)
    anew, _ = sampler.logit_bias(scores([0.25], tokens=[3]), None)
    np.testing.assert_allclose(anew.amounts, 0.5 * np.log1p([0.5]), rtol=1e-14)


def test_credit_reveals_by_dinfers_threshold_and_keeps_its_memory() -> None:
    memory = {10: {1: np.float32(1)}}
    picked, kept = Credit(0.9).select(scores([0.5, 0.500005, 0.4]), turn(0, 3), memory)
    assert picked.tolist() == [0, 1]
    assert kept is memory


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (0.0, [2]),
        (0.09, [2]),
        (0.11, [1, 2]),  # 0.1 + 0.3 - 0.3
        (0.39, [1, 2]),
        (0.5, [0, 1, 2]),  # 0.1 + 0.3 + 0.6 - 0.6 = 0.4
        (1.01, [0, 1, 2, 3]),
    ],
)
def test_entropy_bound_takes_the_longest_prefix(gamma: float, expected: list[int]) -> None:
    given = scores([0.5, 0.5, 0.5, 0.5], priority=[-0.6, -0.3, -0.1, -0.9])
    assert chosen(EntropyBound(gamma), given) == expected


def test_klass_waits_until_a_position_has_been_calm() -> None:
    sampler = Klass(0.8, kl_threshold=0.1, history=2)
    bold = [0.9, 0.95, 0.85]
    picked, memory = sampler.select(scores(bold), turn(0, 3), None)
    assert (picked.tolist(), memory) == ([1], {})  # nothing before: the best one
    picked, memory = sampler.select(scores(bold, divergence=[0.1, 0.05, 0.2]), turn(1, 3), memory)
    assert (picked.tolist(), memory) == ([1], {10: 1, 11: 1})
    picked, memory = sampler.select(scores(bold, divergence=[0.01, 0.5, 0.01]), turn(2, 3), memory)
    assert (picked.tolist(), memory) == ([0], {10: 2, 12: 1})  # position 11 has moved and starts again
    timid = scores([0.7, 0.95, 0.85], divergence=[0.01, 0.01, 0.01])
    picked, memory = sampler.select(timid, turn(3, 3), memory)
    assert (picked.tolist(), memory) == ([2], {10: 3, 11: 1, 12: 2})  # calm is not enough


def test_quotas_count_from_the_block_length() -> None:
    of_eight = StepContext(0, 1, masks=3, left=3, block_length=8, gen_length=64)
    assert [quota(replace(of_eight, step=step), 3) for step in range(5)] == [3, 3, 2, 3, 3]
    assert [quota(replace(of_eight, step=step), 32) for step in (0, 7, 8, 31, 32)] == [1, 1, 1, 1, 3]


def test_llada2_takes_the_sure_ones_if_they_are_enough_else_the_scheduled_best() -> None:
    given = scores([0.5, 0.97, 0.96, 0.2, 0.6, 0.1])
    assert chosen(LLaDA2(0.95, steps_per_block=3), given) == [1, 2]
    assert chosen(LLaDA2(0.95, steps_per_block=6), given) == [1, 2]
    assert chosen(LLaDA2(0.95, steps_per_block=2), given) == [1, 2, 4]
    assert chosen(LLaDA2(0.97, steps_per_block=6), given) == [1]  # 0.97 is not above itself
    assert chosen(LLaDA2(0.95, 6, minimal_topk=32), given, turn(0, 6, gen_length=64)) == [1, 2, 4]  # 64 // 32 steps


def test_llada21_edits_what_it_doubts_and_ends() -> None:
    sampler = LLaDA21Edit(0.9, 0.8, num_to_transfer=1, max_post_steps=3)
    given = scores(
        [0.5, 0.85, 0.85, 0.7, 0.99],
        masked=[True, False, False, False, False],
        differs=[True, True, False, True, True],
        proposes_mask=[False, False, False, False, True],
    )
    picked, memory = sampler.select(given, turn(0, 1), None)
    assert (picked.tolist(), memory) == ([0, 1], 0)  # the best mask; one sure edit; never the mask id
    assert not sampler.done(1, memory)
    assert not sampler.done(0, memory)
    settled = replace(given, masked=np.zeros(5, dtype=bool))
    for expected in (1, 2, 3):
        picked, memory = sampler.select(settled, turn(1, 0), memory)
        assert (picked.tolist(), memory) == ([1], expected)
    assert sampler.done(0, memory)
    calm = replace(settled, differs=np.zeros(5, dtype=bool))
    picked, memory = sampler.select(calm, turn(1, 0), 0)
    assert picked.tolist() == []
    assert sampler.done(0, memory)


def test_llada21_takes_all_that_are_sure_or_at_least_the_asked_number() -> None:
    given = scores([0.95, 0.2, 0.93, 0.5])
    assert chosen(LLaDA21Edit(0.9, num_to_transfer=1), given) == [0, 2]
    assert chosen(LLaDA21Edit(0.9, num_to_transfer=3), given) == [0, 2, 3]


def test_sdar_strategies() -> None:
    given = scores([0.5, 0.97, 0.96, 0.2, 0.6, 0.1])
    assert chosen(Sdar("low_confidence_dynamic", 0.9, 3), given) == [1, 2]
    assert chosen(Sdar("low_confidence_dynamic", 0.9, 2), given) == [1, 2, 4]
    assert chosen(Sdar("low_confidence_static", 0.1, 3), given) == [1, 2]
    assert chosen(Sdar("sequential", 0.9, 2), given) == [0, 1, 2]
    assert chosen(Sdar("sequential", 0.9), given) == [0]  # one position a step
    assert chosen(Sdar("sequential", 0.9, 1), scores([0.5, 0.5])) == [0, 1]  # the quota is more than is left


def test_dream_reveals_by_its_times() -> None:
    """t = 1, 0.75025, 0.5005, 0.25075, 0.001: of 8 masks int(1.998), of 7 int(2.330), of 5 int(2.495), and the rest."""
    shares = [0.24975, 0.24975 / 0.75025, 0.24975 / 0.5005, 1]
    np.testing.assert_allclose(transfer_shares(4, 1e-3), shares, rtol=ROUNDING)
    given = scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    sampler, counts, left = Dream(), [], 8
    for step in range(4):
        taken = len(chosen(sampler, scores([0.5] * left), turn(step, left, masks=8)))
        counts.append(taken)
        left -= taken
    assert counts == [1, 2, 2, 3]
    assert chosen(sampler, given, turn(0, 8, masks=8)) == [7]


def no_noise(step: int) -> np.ndarray:
    raise AssertionError("only origin looks at noise")


def test_dream_passes_over_steps_that_reveal_nothing() -> None:
    sampler = Dream()
    # Step i of 10 has the share 0.0999 / (1 - 0.0999 i): of 3 masks none goes before step 8, whose share is 0.4975.
    assert sampler.skipped_steps(turn(0, 3, steps=10), no_noise) == 8
    assert sampler.skipped_steps(turn(8, 3, steps=10), no_noise) == 0
    assert sampler.skipped_steps(turn(8, 2, steps=10), no_noise) == 1
    assert sampler.skipped_steps(turn(9, 1, steps=10), no_noise) == 0  # the last step takes all
    assert sampler.skipped_steps(turn(5, 1, steps=10), no_noise) == 4
    assert chosen(sampler, scores([0.5, 0.5, 0.5]), turn(9, 3, steps=10)) == [0, 1, 2]


def test_dreams_origin_draws_each_position() -> None:
    sampler = Dream("origin", eps=1e-9)
    noise = {0: [0.3, 0.26], 1: [0.4, 0.34], 2: [0.51, 0.49]}
    assert sampler.skipped_steps(turn(0, 2), lambda step: np.array(noise[step])) == 2
    assert chosen(sampler, scores([0.1, 0.9], uniform=[0.51, 0.49]), turn(2, 2)) == [1]
    assert chosen(sampler, scores([0.1, 0.9], uniform=[0.51, 0.999999]), turn(3, 2)) == [0, 1]


def test_dreams_alg_temp_draws_positions_in_proportion() -> None:
    """One of two, with odds e^(0.7 / 0.5) by the Gumbel trick."""
    generator, sampler = np.random.default_rng(0), Dream("maskgit_plus", alg_temp=0.5, eps=1e-9)
    given, now = scores([0.5, 0.5], priority=[0.7, 0.0]), turn(2, 2)
    first = sum(chosen(sampler, replace(given, uniform=generator.uniform(size=2)), now) == [0] for _ in range(4000))
    assert first / 4000 == pytest.approx(1 / (1 + np.exp(-1.4)), abs=0.03)


def test_fastdllm_dream_carries_what_it_rejected() -> None:
    sampler = FastDLLMDream(0.9)
    # 6 masks in 3 steps: two are looked at; the second is rejected and looked at again.
    picked, carry = sampler.select(scores([0.1, 0.95, 0.3, 0.2, 0.15, 0.12]), turn(0, 6, steps=3), None)
    assert (picked.tolist(), carry) == ([1], 1)
    picked, carry = sampler.select(scores([0.1, 0.93, 0.92, 0.15, 0.12]), turn(1, 5, steps=3), carry)
    assert (picked.tolist(), carry) == ([1, 2], 1)
    picked, carry = sampler.select(scores([0.5, 0.4, 0.3]), turn(2, 3, steps=3), carry)
    assert (picked.tolist(), carry) == ([0], 2)
    picked, carry = sampler.select(scores([0.5, 0.95]), turn(3, 2, steps=3), carry)  # a step more, nothing new
    assert (picked.tolist(), carry) == ([1], 1)
