"""A row's bits at the widths of real models: alone, in batches, at every place, with one thread and several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.models.arithmetic import PROVED, FreeArithmetic, Linear, TiledArithmetic
from dlm.models.arithmetic.probe import cancelling, row_counts
from tests.models.stand_in_products import by_count, by_place
from tests.threads import threads

pytestmark = pytest.mark.bits

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
WIDTHS = [(192, 64), (100, 60), (1920, 640), (640, 1920), (3072, 1024), (2048, 2048)]
"""Outputs and inputs."""
ROWS = 96


def operands(outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows `[ROWS, inputs]`, every fourth of which shows any change of order, and a weight."""
    generator = torch.Generator().manual_seed(3)
    row, weight = cancelling(outputs, inputs, generator)
    x = torch.randn(ROWS, inputs, generator=generator)
    x[::4] = row * torch.linspace(0.5, 2, len(x[::4])).unsqueeze(1)
    return x.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), WIDTHS)
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_batches_of_every_length(
    outputs: int, inputs: int, dtype: torch.dtype, count: int
) -> None:
    x, weight = operands(outputs, inputs, dtype)
    with threads(count):
        whole = PROVED.linear(x, weight)
        for rows in (*range(1, 34), 48, 64, 95) if count == 2 else (1, 2, 3, 5, 8, 17, 33, 64):
            first = (7 * rows) % (ROWS - rows + 1)
            assert torch.equal(PROVED.linear(x[first : first + rows], weight), whole[first : first + rows])
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(count))
        assert torch.equal(PROVED.linear(x[order], weight), whole[order])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_products_are_as_exact_as_they_come(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((41, 640), (100, 640), (100,)))
    exact = F.linear(x.double(), weight.double(), bias.double())
    magnitude = F.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    for arithmetic in (PROVED, FreeArithmetic(), TiledArithmetic(32)):
        # Sums are kept in float32 or wider, with at most 640 roundings, and rounded once to the dtype.
        rounding = 640 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps * magnitude
        bound = rounding + torch.finfo(dtype).eps * exact.abs()
        assert ((arithmetic.linear(x, weight, bias).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("kernel", [by_count(16), by_count(16, 200), by_place(8), by_place(4)])
@torch.inference_mode()
def test_counts_that_hold_keep_the_bits_on_processors_that_are_not_at_hand(
    kernel: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = operands(24, 36, torch.float32)
    monkeypatch.setattr(F, "linear", kernel)
    row_counts.cache_clear()
    try:
        whole = PROVED.linear(x, weight)
        for rows in range(1, 40):
            assert torch.equal(PROVED.linear(x[3 : 3 + rows], weight), whole[3 : 3 + rows])
        fours = [F.linear(x[first:last], weight)[1 - first :] for first, last in ((0, 24), (1, 13))]
        assert not torch.equal(fours[0][:12], fours[1])  # multiples of four rows would not do
    finally:
        row_counts.cache_clear()


@torch.inference_mode()
def test_rows_that_begin_anywhere_in_memory_have_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(5)
    weight, block = torch.randn(70, 63, generator=generator), torch.randn(40 * 63 + 16, generator=generator)
    expected = PROVED.linear(block[: 40 * 63].view(40, 63).clone(), weight)
    for offset in range(1, 16):
        moved = torch.empty_like(block)
        moved[offset : offset + 40 * 63] = block[: 40 * 63]
        assert torch.equal(PROVED.linear(moved[offset : offset + 40 * 63].view(40, 63), weight), expected)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [30, 64, 1001, 1920, 12288])
@torch.inference_mode()
def test_an_activation_does_not_depend_on_its_place(width: int, dtype: torch.dtype, count: int) -> None:
    both = (4 * torch.randn(ROWS, 2 * width, generator=torch.Generator().manual_seed(6))).to(dtype)
    wide = both.to(torch.promote_types(dtype, torch.float32))
    with threads(count):
        whole, logistic = PROVED.gated_silu(*both.chunk(2, dim=-1)), PROVED.sigmoid(wide)
        for rows in (1, 2, 3, 5, 33, 95):
            for first in (0, 1, ROWS - rows):
                part = slice(first, first + rows)
                assert torch.equal(PROVED.gated_silu(*both[part].chunk(2, dim=-1)), whole[part])
                assert torch.equal(PROVED.sigmoid(wide[part]), logistic[part])
    gate, up = both.chunk(2, dim=-1)
    torch.testing.assert_close(whole, F.silu(gate) * up)
    torch.testing.assert_close(logistic, wide.sigmoid())


def test_gradients_flow_through_plain_products() -> None:
    layer = Linear(64, 24)
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@torch.inference_mode()
def test_no_rows_give_no_rows() -> None:
    assert PROVED.linear(torch.zeros(0, 8), torch.zeros(5, 8)).shape == (0, 5)
