"""The kinds of arithmetic that a model may compute with: what decides whether a row's bits may depend on its batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlm.models.arithmetic.activations import placeless_gated_silu, placeless_sigmoid
from dlm.models.arithmetic.counts import RowCounts
from dlm.models.arithmetic.probe import Product, row_counts

ALIGNMENT = 64
"""Bytes; rows that begin elsewhere are copied, since kernels may treat them differently."""


class Arithmetic(Protocol):
    """What a model's layers compute with."""

    @property
    def grouped(self) -> bool:
        """Whether the products of several experts may be one call, where a device has a kernel for that."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [rows, inputs]` times `weight [outputs, inputs]`, `[rows, outputs]`, in their dtype."""

    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        """`silu(gate) * up`, element by element, in their dtype; `silu` is rounded before the product."""

    def sigmoid(self, x: Tensor) -> Tensor:
        """The logistic function of `x`, which is at least float32."""


@runtime_checkable
class Computes(Protocol):
    """A module with an arithmetic."""

    arithmetic: Arithmetic


class FreeArithmetic:
    """What the libraries make of a call, whatever the number of rows."""

    grouped = True

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def sigmoid(self, x: Tensor) -> Tensor:
        return x.sigmoid()


@dataclass(frozen=True)
class TiledArithmetic(FreeArithmetic):
    """Products of one fixed number of rows, for a GPU that is to be deterministic."""

    rows: int
    grouped = False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_by_counts(x, weight, bias, RowCounts((self.rows,)))


class ProvedArithmetic(FreeArithmetic):
    """On a CPU, products of numbers of rows that the probe has shown to give a row the same bits, and activations that
    do not depend on an element's place.

    Free where there is nothing to keep: on other devices, where gradients are recorded, and under autocast or
    torch.compile, which round as they like.
    """

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not _kept(x):
            return super().linear(x, weight, bias)
        return linear_by_counts(x, weight, bias, row_counts(Product.of(weight, bias), torch.get_num_threads()))

    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        return placeless_gated_silu(gate, up) if _kept(gate) else super().gated_silu(gate, up)

    def sigmoid(self, x: Tensor) -> Tensor:
        return placeless_sigmoid(x) if _kept(x) else super().sigmoid(x)


def _kept(x: Tensor) -> bool:
    free = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and not free


def linear_by_counts(x: Tensor, weight: Tensor, bias: Tensor | None, counts: RowCounts) -> Tensor:
    """`x [rows, inputs]` times `weight [outputs, inputs]` by products of `counts` rows, zeros filling the last."""
    rows = x.shape[0]
    parts = counts.split(rows)
    if not parts:
        return x.new_zeros(0, weight.shape[0])
    if parts == (rows,):
        return F.linear(aligned(x.contiguous()), weight, bias)
    x = F.pad(x, (0, 0, 0, sum(parts) - rows)) if sum(parts) > rows else x.contiguous()
    results = [F.linear(aligned(part), weight, bias) for part in torch.split(x, list(parts))]
    return (results[0] if len(results) == 1 else torch.cat(results))[:rows]


def aligned(x: Tensor) -> Tensor:
    """`x`, or a copy where it does not begin on a multiple of `ALIGNMENT` bytes."""
    return x.clone() if x.data_ptr() % ALIGNMENT else x


PROVED: Arithmetic = ProvedArithmetic()
"""What a model computes with where nothing else is asked for."""


class Linear(nn.Linear):
    """A linear layer on rows `[rows, in]`, computed with an arithmetic."""

    arithmetic: Arithmetic = PROVED

    def forward(self, input: Tensor) -> Tensor:
        return self.arithmetic.linear(input, self.weight, self.bias)
