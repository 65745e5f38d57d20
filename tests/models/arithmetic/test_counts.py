"""Batches are cut into numbers of rows that hold, at the least cost."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from dlm.models.arithmetic.counts import CALL_ROWS, RowCounts

SETS = [(1,), (4,), (4, 8, 12), (16, 20, 64), (4, 16, 24, 48, 96), tuple(range(4, 65, 4))]


@pytest.mark.parametrize("counts", SETS, ids=str)
def test_parts_are_counts_that_hold_and_cover_the_rows(counts: tuple[int, ...]) -> None:
    for rows in range(301):
        parts = RowCounts(counts).split(rows)
        assert set(parts) <= set(counts)
        assert rows <= sum(parts) < rows + counts[0] + max(counts)
        if rows in counts:
            assert parts == (rows,)
    assert RowCounts(counts).split(0) == ()


@pytest.mark.parametrize("counts", SETS, ids=str)
def test_few_rows_are_cut_at_no_more_than_a_call_above_the_least_cost(counts: tuple[int, ...]) -> None:
    for rows in range(1, min(counts[-1], 40) + 1):
        best = min(
            sum(parts) + CALL_ROWS * size
            for size in range(1, 4 if counts[0] > 1 else rows + 1)
            for parts in combinations_with_replacement(counts, size)
            if sum(parts) >= rows
        )
        parts = RowCounts(counts).split(rows)
        assert sum(parts) + CALL_ROWS * len(parts) <= best + CALL_ROWS


def test_what_holds_for_more_sizes_costs_less() -> None:
    every, from_16, few, one = (RowCounts(counts) for counts in (SETS[-1], (16, 20, 64), (4, 8), (1,)))
    assert 1 <= every.cost < from_16.cost < one.cost
    assert every.cost < few.cost < one.cost


def test_they_are_told_in_words() -> None:
    assert str(RowCounts((4, 8, 12))) == "4 to 12 rows in 3 sizes"
    assert str(RowCounts((256,))) == "256 rows"
