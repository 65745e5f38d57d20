"""The probe finds out what processors do to a row, told apart by stand-ins for some that are not at hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.models.arithmetic import Product, RowCounts
from dlm.models.arithmetic.probe import LADDERS, cancelling, classes, operands, row_counts
from tests.models.stand_in_products import Linear, by_count, by_place

FINE = LADDERS[0]
SMALL = Product(24, 36, torch.float32)


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    row_counts.cache_clear()


def found(monkeypatch: pytest.MonkeyPatch, linear: Linear, product: Product = SMALL) -> RowCounts:
    monkeypatch.setattr(F, "linear", linear)
    try:
        return row_counts(product, torch.get_num_threads())
    finally:
        row_counts.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_counts_below_and_above_another_kernel_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    product = SMALL._replace(dtype=dtype)
    monkeypatch.setattr(F, "linear", by_count(16, 200))
    parts = [tuple(count for count in FINE if low <= count < high) for low, high in ((1, 16), (16, 200), (200, 999))]
    assert classes(product) == parts
    assert found(monkeypatch, by_count(16, 200), product) == RowCounts(parts[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_counts_in_which_the_place_matters_are_not_taken(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    product = SMALL._replace(dtype=dtype)
    assert found(monkeypatch, by_place(32), product).counts == tuple(count for count in FINE if count < 32)
    assert found(monkeypatch, by_place(512), product).counts == FINE[:-1]


def test_where_nothing_holds_rows_are_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, by_place(4)).counts == (1,)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_operands_lie_in_memory_as_the_product_says(dtype: torch.dtype, transposed: bool, bias: bool) -> None:
    product = Product(30, 40, dtype, transposed, bias)
    row, weight, added = operands(product)
    assert row.shape == (40,)
    assert weight.shape == (30, 40)
    assert Product.of(weight, added) == product
    assert torch.equal((row.double() * weight.double()).sum(-1).round(decimals=9), torch.zeros(30, dtype=torch.float64))


def share_changed_by_order(row: Tensor, weight: Tensor) -> float:
    """Of the products of a row, summed in float32 from either end and rounded, how many differ."""
    sums = []
    for terms in (row.float() * weight.float(), (row.float() * weight.float()).flip(-1)):
        total = torch.zeros(len(weight))
        for place in range(terms.shape[1]):
            total = total + terms[:, place]
        sums.append(total.to(row.dtype))
    return float((sums[0] != sums[1]).double().mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_data_show_another_order_in_most_elements(dtype: torch.dtype) -> None:
    made = cancelling(256, 512, torch.Generator().manual_seed(1))
    plain = torch.randn(257, 512, generator=torch.Generator().manual_seed(2)).split([1, 256])
    changed = [share_changed_by_order(row.to(dtype), weight.to(dtype)) for row, weight in (made, plain)]
    assert changed[0] > 0.8
    assert dtype == torch.float32 or changed[1] < 0.1


def test_larger_products_are_tried_with_fewer_counts() -> None:
    sizes = [Product(width, width, torch.float32).candidates for width in (64, 1920, 2500, 4096, 9000, 20000)]
    assert [len(one) for one in sizes] == sorted((len(one) for one in sizes), reverse=True)
    assert sizes[0] == FINE
    assert sizes[-1] == LADDERS[-1]
    assert len(set(sizes)) > 3
