"""The front, its area, and the intervals."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from dlm.report.pareto import Point, area, front, interval

POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=9)


def dominates(one: Point, other: Point) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def test_a_front_by_hand() -> None:
    points = [(1.0, 0.9), (2.0, 0.8), (1.5, 0.7), (3.0, 0.2), (3.0, 0.5), (1.0, 0.9)]
    assert front(points) == [0, 1, 4]
    assert area(points) == pytest.approx(1 * 0.9 + 1 * 0.8 + 1 * 0.5)


def test_nothing_has_no_area() -> None:
    assert (front([]), area([])) == ([], 0.0)


@given(POINTS)
def test_the_front_is_what_nothing_dominates_once_each(points: list[Point]) -> None:
    kept = [points[index] for index in front(points)]
    assert set(kept) == {one for one in points if not any(dominates(other, one) for other in points)}
    assert len(kept) == len(set(kept))
    assert kept == sorted(kept)


@given(POINTS)
def test_the_area_is_that_of_the_cells_below(points: list[Point]) -> None:
    cells = itertools.product(range(6), repeat=2)
    assert area(points) == sum(any(x + 1 <= speed and y + 1 <= best for speed, best in points) for x, y in cells)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (3, 10), (345, 345), (200, 345)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    known = binomtest(right, count).proportion_ci(0.95, "wilson")
    assert interval(right / count, count) == pytest.approx((known.low, known.high), abs=1e-6)
