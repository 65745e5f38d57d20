"""What the libraries of this machine do to a row's bits, found out by trying.

The data are made so that any change of order shows: the second half of each sum takes back the first, term by term, so
that the exact result is 0 and what is computed is rounding alone; and terms differ by several orders of magnitude, so
that float32 sums of bfloat16 numbers are rounded too. Another order of summation then gives other bits in most
elements, in half precision too, where ordinary data differ in one of 10,000 or fewer.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.models.arithmetic.counts import RowCounts

_FINE = (*range(4, 65, 4), *range(72, 129, 8), *range(144, 257, 16), *range(288, 513, 32))
_MEDIUM = (4, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
_COARSE = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LADDERS = (_FINE, _MEDIUM, _COARSE, (4, 8, 16, 24, 48, 96, 128), (4, 16, 24, 48, 96))
"""Numbers of rows to try, finest first: the larger a product, the fewer."""

FLOPS = 60e9
"""Multiplications and additions that the probe of one product may take: about a second of one core."""

DISTINCT = 1024
"""Outputs of a probed product that differ; further ones repeat them."""


class Product(NamedTuple):
    """A matrix product as the libraries see it: `x [rows, inputs]` times `weight [outputs, inputs]`.

    Attributes:
        transposed: the weight lies in memory as `[inputs, outputs]`.
        bias: whether one is added.
    """

    outputs: int
    inputs: int
    dtype: torch.dtype
    transposed: bool = False
    bias: bool = False

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Product:
        """The product with `weight [outputs, inputs]`."""
        outputs, inputs = weight.shape
        transposed = outputs > 1 and inputs > 1 and weight.stride(0) == 1
        return cls(outputs, inputs, weight.dtype, transposed, bias is not None)

    @property
    def candidates(self) -> tuple[int, ...]:
        """Numbers of rows to try."""
        affordable = FLOPS / (2.0 * self.outputs * self.inputs)
        return next((ladder for ladder in LADDERS if sum(ladder) <= affordable), LADDERS[-1])


def cancelling(count: int, inputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A row `[inputs]` and `count` rows of weights `[count, inputs]` float32 whose products are exactly 0."""
    half = inputs // 2
    order = torch.randperm(half, generator=generator)
    row, weight = torch.zeros(inputs), torch.zeros(count, inputs)
    row[:half] = torch.randn(half, generator=generator) * 2.0 ** torch.randint(-9, 10, (half,), generator=generator)
    weight[:, :half] = torch.randn(count, half, generator=generator)
    row[half : 2 * half], weight[:, half : 2 * half] = -row[:half][order], weight[:, :half][:, order]
    return row, weight


def operands(product: Product) -> tuple[Tensor, Tensor, Tensor | None]:
    """A row `[inputs]`, a weight `[outputs, inputs]` and a bias to try a product with."""
    generator = torch.Generator().manual_seed(0)
    row, weight = cancelling(min(product.outputs, DISTINCT), product.inputs, generator)
    row, weight = row.to(product.dtype), weight.to(product.dtype)
    # Rounding keeps the halves each other's opposites.
    weight = weight.repeat(-(-product.outputs // DISTINCT), 1)[: product.outputs]
    weight = weight.t().contiguous().t() if product.transposed else weight.contiguous()
    bias = torch.full((product.outputs,), 2.0**-20, dtype=product.dtype) if product.bias else None
    return row, weight, bias


def classes(product: Product, candidates: tuple[int, ...] | None = None) -> list[tuple[int, ...]]:
    """Numbers of rows by the bits that they give; those within which a row's place matters are in none."""
    row, weight, bias = operands(product)
    found: list[tuple[Tensor, list[int]]] = []
    for count in candidates or product.candidates:
        results = F.linear(row.expand(count, -1).contiguous(), weight, bias)
        if not torch.equal(results, results[:1].expand_as(results)):
            continue
        for bits, counts in found:
            if torch.equal(results[0], bits):
                counts.append(count)
                break
        else:
            found.append((results[0].clone(), [count]))
    return [tuple(counts) for _, counts in found]


@cache
def row_counts(product: Product, threads: int) -> RowCounts:
    """The cheapest numbers of rows that give a row the same bits at every place, with `threads` threads, which is what
    torch uses now. Where none does, rows are computed one by one."""
    with torch.inference_mode():
        choices = [RowCounts(counts) for counts in classes(product)]
    return min(choices, key=lambda choice: choice.cost, default=RowCounts((1,)))
