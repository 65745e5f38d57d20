"""The ceiling's arithmetic, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from dlm.bench.ceiling import Matmul, Shape, attention_seconds, floor, ideal, matmul_seconds
from dlm.bench.workloads import Case, Forward


class HandRates:
    """1,000 flops a second in matmuls, 100 in attention, half a second a row of logits."""

    def __init__(self, bandwidth: float = 1e9) -> None:
        self.bandwidth = bandwidth

    def matmul(self, rows: int, layer: Matmul) -> float:
        return 1000.0

    def attention(self, queries: int, keys: int) -> float:
        return 100.0

    def score_row(self) -> float:
        return 0.5


SHAPE = Shape(
    layer_matmuls=((2, 3), (3, 2)), num_layers=2, head=(2, 5), query_width=2, key_width=2, itemsize=4, row_tile=4
)


def test_a_matmul_costs_its_bytes_when_they_take_longer_than_its_flops() -> None:
    # 3 rows become 4: 48 flops take 0.048 s; 6 weights, 8 inputs and 12 outputs of 4 bytes take 104 / 50 s.
    assert matmul_seconds(3, (2, 3), SHAPE, HandRates(50.0)) == pytest.approx(104 / 50)


def test_a_matmul_costs_its_flops_when_memory_is_fast() -> None:
    rates = HandRates()
    assert matmul_seconds(3, (2, 3), SHAPE, rates) == pytest.approx(48 / 1000)


def test_attention_counts_every_window() -> None:
    rates = HandRates()
    # 4 x 3 x 5 x 2 = 120 flops and 4 x 1 x 1 x 2 = 8.
    assert attention_seconds([(3, 5), (1, 1)], SHAPE, rates) == pytest.approx(1.28)


def test_ideal_adds_the_parts_of_all_forwards() -> None:
    rates = HandRates()
    forwards = [Forward(((3, 5), (1, 1)), head_rows=2), Forward(((4, 4),), head_rows=4)]
    seconds = ideal(forwards, SHAPE, rates)
    # Both forwards have 4 rows: 2 layers x 2 matmuls x 48 flops.
    assert seconds.matmul == pytest.approx(2 * 2 * 2 * 0.048)
    assert seconds.attention == pytest.approx(2 * (1.28 + 1.28))
    # 2 rows become 4: 4 x 2 x 2 x 5 = 80 flops each.
    assert seconds.head == pytest.approx(2 * 0.08)
    assert seconds.scores == pytest.approx(6 * 0.5)
    assert seconds.total == pytest.approx(0.384 + 5.12 + 0.16 + 3.0)


def test_floor_takes_the_slower_of_operations_and_bytes() -> None:
    forward = Forward(((3, 5), (1, 1)), head_rows=2)
    # Weights: 2 x (6 + 6) + 10 = 34 numbers; cached: 6 keys x 2 x 2 x 2 layers = 48 numbers; 4 bytes each.
    assert floor([forward], SHAPE, peak=1e9, bandwidth=1.0) == pytest.approx((34 + 48) * 4)
    # 2 x (4 rows x 24 + 2 rows x 10) + 4 x 16 pairs x 2 x 2 layers.
    assert floor([forward], SHAPE, peak=1.0, bandwidth=1e9) == pytest.approx(232 + 256)


def case(engine: str) -> Case:
    prompts = ((1,) * 5, (1,) * 9)
    return Case(engine, 2, "float32", prompts, gen_length=8, block_length=4, blocks=2, steps_per_block=3)


def test_the_schedule_of_full() -> None:
    assert case("full").quotas() == [2, 1, 1]
    assert case("full").windows(5) == [(13, 13, masked) for masked in (4, 2, 1, 4, 2, 1)]


def test_the_schedule_of_the_cached_engines() -> None:
    assert [rows for rows, _, _ in case("dual_cache").windows(5)] == [13, 4, 4, 13, 4, 4]
    assert [rows for rows, _, _ in case("prefix_cache").windows(5)] == [13, 8, 8, 13, 4, 4]


def test_both_sides_make_the_same_positions() -> None:
    packed, single = case("dual_cache").packed_forwards(), case("dual_cache").reference_forwards()
    assert (len(packed), len(single)) == (6, 12)
    assert sum(forward.rows for forward in packed) == sum(forward.rows for forward in single)
    assert [forward.head_rows for forward in packed] == [8, 4, 2, 8, 4, 2]
    assert all(forward.head_rows == forward.rows for forward in single)
