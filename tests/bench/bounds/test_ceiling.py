"""The ceiling's arithmetic, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from dlm.bench.bounds.ceiling import ForwardShape, Matmul, attention_seconds, ideal, matmul_seconds
from dlm.bench.workloads import Forward


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


SHAPE = ForwardShape(
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
    forwards = [Forward(((3, 5), (1, 1)), head_rows=2, score_rows=2), Forward(((4, 4),), head_rows=4, score_rows=1)]
    seconds = ideal(forwards, SHAPE, rates)
    # Both forwards have 4 rows: 2 layers x 2 matmuls x 48 flops.
    assert seconds.matmul == pytest.approx(2 * 2 * 2 * 0.048)
    assert seconds.attention == pytest.approx(2 * (1.28 + 1.28))
    # 2 rows become 4: 4 x 2 x 2 x 5 = 80 flops each.
    assert seconds.head == pytest.approx(2 * 0.08)
    assert seconds.scores == pytest.approx(3 * 0.5)
    assert seconds.total == pytest.approx(0.384 + 5.12 + 0.16 + 1.5)
