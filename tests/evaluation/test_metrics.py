"""Scores and intervals against brute force and published values."""

from __future__ import annotations

from itertools import combinations

import pytest

from dlm.evaluation.metrics import bootstrap, interval, pass_at_k, wilson


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples: int) -> None:
    for right in range(samples + 1):
        for k in range(1, samples + 1):
            draws = list(combinations(range(samples), k))
            share = sum(any(one < right for one in draw) for draw in draws) / len(draws)
            assert pass_at_k(samples, right, k) == pytest.approx(share)


@pytest.mark.parametrize(
    ("samples", "right", "k", "expected"),
    [(200, 0, 100, 0.0), (200, 200, 1, 1.0), (200, 20, 1, 0.1), (200, 1, 100, 0.5), (10, 3, 10, 1.0), (5, 4, 3, 1.0)],
)
def test_pass_at_k_of_many_samples(samples: int, right: int, k: int, expected: float) -> None:
    assert pass_at_k(samples, right, k) == pytest.approx(expected)


def test_pass_at_k_refuses_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="pass@3 of 2 samples"):
        pass_at_k(2, 1, 3)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3: 81 of 263
        (15, 148, 0.0624, 0.1605),  # 15 of 148
        (0, 20, 0.0000, 0.1611),  # 0 of 20
        (1, 29, 0.0061, 0.1718),  # 1 of 29
    ],
)
def test_wilson_intervals_as_published(right: int, total: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17, 857 (1998)."""
    found = wilson(right, total, 0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_a_bootstrap_agrees_with_wilson_where_both_hold_and_is_seeded() -> None:
    values = [1.0] * 300 + [0.0] * 200
    one, other = bootstrap(values, 0.95), wilson(300, 500, 0.95)
    assert one.low == pytest.approx(other.low, abs=0.006)
    assert one.high == pytest.approx(other.high, abs=0.006)
    assert bootstrap(values, 0.95) == one


def test_the_interval_says_its_method() -> None:
    assert interval([1.0, 0.0, 1.0], 0.9).method == "wilson"
    assert interval([1.0, 0.5], 0.9).method == "bootstrap"
    nothing = interval([], 0.9)
    assert (nothing.low, nothing.high) == (0.0, 1.0)
