"""Ranges, scheduler, layout and samplers on their own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dlm.decoding.arena import Ranges
from dlm.decoding.layout import blocks_from, first_block
from dlm.decoding.samplers import DInferThreshold, Factor, Fixed, Sampler, Scores, Threshold, Turn
from dlm.decoding.scheduler import Scheduler


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=80))
def test_ranges_never_overlap_and_all_come_back(actions: list[tuple[bool, int]]) -> None:
    ranges = Ranges(100)
    taken: dict[int, int] = {}
    for take, length in actions:
        if take or not taken:
            start = ranges.take(length)
            if start is not None:
                assert 0 <= start <= 100 - length
                assert all(start + length <= s or s + n <= start for s, n in taken.items())
                taken[start] = length
        else:
            start = sorted(taken)[length % len(taken)]
            assert ranges.give_back(start) == taken.pop(start)
        assert ranges.num_taken == sum(taken.values())
    for start in taken:
        ranges.give_back(start)
    assert ranges.take(100) == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 60))
def test_the_scheduler_starves_no_one(costs: list[int], budget: int) -> None:
    scheduler: Scheduler[int] = Scheduler(len(costs), budget)
    for item in range(len(costs)):
        scheduler.admit(item)
    served = dict.fromkeys(range(len(costs)), 0)
    for _ in range(len(costs)):
        picked = scheduler.pick(lambda item: costs[item])
        assert sum(costs[item] for item in picked) <= budget or len(picked) == 1
        for item in picked:
            served[item] += 1
    assert min(served.values()) >= 1
    assert sorted(scheduler.running) == sorted(served)


@given(st.integers(1, 20), st.integers(1, 50), st.integers(1, 20), st.integers(1, 100), st.data())
def test_blocks_cover_every_mask_once_and_share_the_steps(
    prompt: int, gen: int, block: int, steps: int, data: st.DataObject
) -> None:
    tokens = np.concatenate((np.arange(prompt), np.full(gen, 99)))
    for place in data.draw(st.sets(st.integers(0, prompt - 1), max_size=3)):
        tokens[place] = 99
    first = first_block(tokens, prompt, block, 99, aligned=data.draw(st.booleans()))
    blocks = blocks_from(tokens, first, block, steps, 99)
    covered = [place for part in blocks for place in range(part.start, part.stop)]
    assert len(covered) == len(set(covered))
    assert set(np.flatnonzero(tokens == 99)) <= set(covered)
    shares = [part.steps for part in blocks]
    assert sum(shares) == steps
    assert shares == sorted(shares, reverse=True)
    assert max(shares) - min(shares) <= 1


def scores(confidence: list[float], mask: list[bool] | None = None, positions: list[int] | None = None) -> Scores:
    c = np.array(confidence)
    odds = np.log1p(-c) - np.log(c)
    size = len(c)
    return Scores(
        positions=np.arange(10, 10 + size) if positions is None else np.array(positions),
        rank=-odds,
        log_odds=odds,
        tokens=np.arange(size),
        proposes_mask=np.array(mask or [False] * size),
        masked=np.array([True] * size),
        differs=np.array([True] * size),
        uniform=np.full(size, 0.5),
        divergence=np.full(size, np.inf),
    )


def turn(step: int, left: int, *, steps: int = 4, masks: int = 6, floor: float = 0.0) -> Turn:
    return Turn(step, steps, masks, left, block_length=masks, gen_length=masks, floor=floor)


TURN = turn(0, 6)


def chosen(sampler: Sampler, given: Scores, turn: Turn = TURN) -> list[int]:
    return sorted(int(i) for i in sampler.select(given, turn, None)[0])


def test_threshold_takes_all_above_the_bar_and_always_the_best() -> None:
    assert chosen(Threshold(0.9), scores([0.95, 0.2, 0.91, 0.89])) == [0, 2]
    assert chosen(Threshold(0.9), scores([0.1, 0.3, 0.3])) == [1]


def test_factor_takes_the_prefix_and_all_when_the_last_fails() -> None:
    assert chosen(Factor(1.0), scores([0.5, 0.9, 0.7, 0.1])) == [1, 2]
    assert chosen(Factor(1.0), scores([0.9, 0.8, 0.1])) == [0, 1, 2]
    assert chosen(Factor(0.1), scores([0.9, 0.8, 0.7])) == [0]


def test_dinfer_threshold_takes_near_ties_and_no_masks() -> None:
    assert chosen(DInferThreshold(0.9), scores([0.5, 0.500005, 0.4])) == [0, 1]
    assert chosen(DInferThreshold(0.9), scores([0.99, 0.5, 0.3], [True, False, False])) == [1]


def test_fixed_follows_the_schedule_and_catches_up() -> None:
    even = scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    quotas = [len(chosen(Fixed(), even, turn(step, left))) for step, left in ((0, 6), (1, 4), (2, 2), (3, 1))]
    assert quotas == [2, 2, 1, 1]
    assert chosen(Fixed(), even, turn(1, 5)) == [3, 4, 5]
    assert chosen(Fixed(), scores([0.3, 0.3, 0.3]), turn(3, 1)) == [0]
