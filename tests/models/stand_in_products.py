"""Products of processors that are not at hand: a row's bits depend on its batch as they do there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Linear = Callable[..., Tensor]


def _in_order(x: Tensor, weight: Tensor, order: tuple[int, int, int]) -> Tensor:
    """The product whose three parts of each sum are added in `order`; each row by itself."""
    parts = [
        (row.unsqueeze(-2) * column).double().sum(-1)
        for row, column in zip(x.chunk(3, dim=-1), weight.chunk(3, dim=-1), strict=True)
    ]
    first, second, third = (parts[place].to(torch.float32) for place in order)
    return ((first + second) + third).to(x.dtype)


def _with_bias(result: Tensor, bias: Tensor | None) -> Tensor:
    return result if bias is None else result + bias


def by_count(*bounds: int) -> Linear:
    """Other kernels from each of `bounds` rows on, as MKL takes them on Intel's processors."""
    orders = ((0, 1, 2), (1, 2, 0), (2, 0, 1))

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        order = orders[sum(len(x) >= bound for bound in bounds)]
        return _with_bias(_in_order(x, weight, order), bias)

    return linear


def by_place(tile: int) -> Linear:
    """Another kernel for the last row of each whole `tile` rows, as under AVX2."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        last = (torch.arange(len(x)) % tile == tile - 1).unsqueeze(1)
        return _with_bias(torch.where(last, _in_order(x, weight, (2, 1, 0)), _in_order(x, weight, (0, 1, 2))), bias)

    return linear
