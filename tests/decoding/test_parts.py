"""Ranges, scheduler and layout on their own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dlm.decoding.kv.arena import Ranges
from dlm.decoding.layout import blocks_from, first_block
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
