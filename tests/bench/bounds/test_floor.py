"""The floor's arithmetic, against numbers worked out by hand and against the parameters of the models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from dlm.bench.bounds.floor import BodyCost, costs, floor
from dlm.bench.workloads import Forward
from dlm.models.backbone import Backbone, RMSNorm
from dlm.models.io.loading import random_checkpoint
from dlm.models.sizes import SIZES

BODY = BodyCost(
    dense=24, expert=0, expert_layers=0, num_experts=0, top_k=0, attention_width=4, cached_width=8, head=10, itemsize=4
)


def test_the_slower_of_operations_and_bytes() -> None:
    forward = Forward(((3, 5), (1, 1)), head_rows=2, score_rows=2)
    # Weights: 24 + 10 numbers; cached: 6 keys x 8 numbers; 4 bytes each.
    assert floor(costs([forward], BODY), peak=1e9, bandwidth=1.0) == pytest.approx((34 + 48) * 4)
    # 2 x (4 rows x 24 + 2 rows x 10) + 4 x 16 pairs x 4.
    assert floor(costs([forward], BODY), peak=1.0, bandwidth=1e9) == pytest.approx(232 + 256)


def test_the_expected_embedding_is_another_head() -> None:
    soft = Forward(((4, 4),), head_rows=2, score_rows=2, soft_rows=2)
    plain = Forward(((4, 4),), head_rows=2, score_rows=2)
    assert BODY.operations(soft) - BODY.operations(plain) == 2 * 2 * 10
    assert BODY.bytes(soft) - BODY.bytes(plain) == 10 * 4


def test_experts_are_read_when_a_row_chooses_them() -> None:
    body = replace(BODY, dense=0, expert=6, expert_layers=2, num_experts=8, top_k=2, cached_width=0, head=0, itemsize=1)
    assert body.row_numbers == 2 * 2 * 6
    assert body.bytes(Forward(((1, 1),), 1, 1)) == pytest.approx(2 * 2 * 6)
    # Of 8 experts 8 (1 - 0.75 ** 3) are met by three rows.
    assert body.bytes(Forward(((3, 3),), 1, 1)) == pytest.approx(2 * 6 * 8 * (1 - 0.75**3))


@pytest.mark.parametrize("size", [name for name in SIZES if name.startswith("tiny")])
def test_the_body_counts_the_matmul_weights_of_the_model(size: str) -> None:
    backbone: Backbone = random_checkpoint(size).backbone
    norms = sum(p.numel() for m in backbone.modules() if isinstance(m, RMSNorm) for p in m.parameters())
    biases = sum(p.numel() for name, p in backbone.named_parameters() if name.endswith("bias"))
    tables = sum(m.weight.numel() for m in backbone.modules() if isinstance(m, nn.Embedding))
    weights = sum(p.numel() for p in backbone.parameters()) - norms - biases - tables
    body = BodyCost.of(backbone.config, 4)
    assert body.dense + body.expert_layers * body.num_experts * body.expert + body.head == weights
