"""Which arithmetic and attention a decoder uses, and what they come to on the machine at hand."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import nn

from dlm.errors import ConfigError
from dlm.models.arithmetic import (
    Arithmetic,
    Computes,
    FreeArithmetic,
    Linear,
    Product,
    ProvedArithmetic,
    RowCounts,
    TiledArithmetic,
    row_counts,
)
from dlm.models.attention import AttentionBackend, SdpaAttention, SeparateAttention, choose_backend
from dlm.models.backbone import Backbone
from dlm.models.experts import ExpertRouter, Experts
from dlm.models.lora.training import adapter_of
from dlm.models.mkl import VARIABLE

ModuleT = TypeVar("ModuleT", bound=nn.Module)

CUDA_ROWS = 256
"""Rows of every product where a GPU is to be deterministic: fewer read the weights too often."""


@dataclass(frozen=True)
class Arrangement:
    """How a model is computed.

    Attributes:
        backbone: the model, with its arithmetic.
        backend: its attention.
        threads: of a CPU, as torch had when this was made.
    """

    backbone: Backbone
    backend: AttentionBackend
    threads: int

    @classmethod
    def of(
        cls, backbone: Backbone, deterministic: bool | None = None, backend: AttentionBackend | None = None
    ) -> Arrangement:
        """The arrangement of a model, proved on this machine where it has to be.

        Args:
            backbone: the model; where it is to compute otherwise than it does, a copy that shares its weights is taken.
            deterministic: whether a row's bits are kept from depending on its batch; None does so on a CPU.
            backend: the attention to use; None chooses.

        Raises:
            ConfigError: an adapter is in training and the model would have to be copied.
        """
        on_cpu = backbone.device.type == "cpu"
        chosen: AttentionBackend = choose_backend(backbone.device, backbone.dtype)
        if on_cpu and deterministic is False:
            backbone, chosen = with_arithmetic(backbone, FreeArithmetic()), SdpaAttention
        elif not on_cpu and deterministic:
            backbone, chosen = with_arithmetic(backbone, TiledArithmetic(CUDA_ROWS)), SeparateAttention
        made = cls(backbone, backend or chosen, torch.get_num_threads())
        if isinstance(backbone.arithmetic, ProvedArithmetic) and on_cpu:
            _ = made.counts
        return made

    @cached_property
    def counts(self) -> dict[Product, RowCounts]:
        """Numbers of rows of each of the model's products, on a CPU."""
        return {product: row_counts(product, self.threads) for product in dict.fromkeys(products_of(self.backbone))}

    def __str__(self) -> str:
        """One line for a person."""
        dtype = str(self.backbone.dtype).removeprefix("torch.")
        arithmetic = self.backbone.arithmetic
        if isinstance(arithmetic, TiledArithmetic):
            return f"{dtype}, products of {arithmetic.rows} rows"
        if self.backbone.device.type != "cpu" or not isinstance(arithmetic, ProvedArithmetic):
            return f"{dtype}, bits may depend on the batch"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        sizes = {counts.counts for counts in self.counts.values()}
        least, most = max(min(one) for one in sizes), min(max(one) for one in sizes)
        products = f"products of {least} to {most} rows proved" if least < most else f"products of {least} rows proved"
        machine = f"{torch.backends.cpu.get_cpu_capability()}, {VARIABLE}={os.environ.get(VARIABLE, '')}"
        return f"{dtype}, {threads}, {products} ({machine})"


def products_of(backbone: Backbone) -> Iterator[Product]:
    """The products of a model's layers and head, as often as they occur."""
    for module in backbone.modules():
        match module:
            case Linear():
                yield Product.of(module.weight, module.bias)
            case ExpertRouter():
                wide = torch.promote_types(module.weight.dtype, torch.float32)
                yield Product.of(module.weight)._replace(dtype=wide)
            case Experts():
                yield Product.of(module.gate_up[0])
                yield Product.of(module.down[0])


def with_arithmetic(backbone: Backbone, arithmetic: Arithmetic) -> Backbone:
    """The same model computing with `arithmetic`; it shares weights, buffers and all else with the original.

    Raises:
        ConfigError: an adapter is in training, which belongs to one model.
    """
    if adapter_of(backbone) is not None:
        raise ConfigError(
            "decoder.deterministic: an adapter in training computes as the model does by itself; leave it at null, or "
            "decode with a copy"
        )
    copied = _shallow(backbone)
    for module in copied.modules():
        if isinstance(module, Computes):
            module.arithmetic = arithmetic
    return copied


def _shallow(module: ModuleT) -> ModuleT:
    copied = copy.copy(module)
    copied._modules = {name: None if part is None else _shallow(part) for name, part in module._modules.items()}
    return copied
