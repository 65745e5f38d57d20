"""Tensor parallelism: which part of a model each of several processes holds.

Query, key and value heads, and the inner width of every feed-forward (of each expert's too), are split evenly; what
projects back to the hidden size holds the matching columns. Its outputs are partial, and their sum over the processes
is taken twice a layer: behind the attention and behind the feed-forward (arXiv 1909.08053). Embedding, norms, routers
and the LM head are whole in every process.

Knows no process and no network: `dlm.distributed.group` sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dlm.errors import ConfigError
from dlm.models.architecture import BackboneConfig
from dlm.models.families.base import Family, WeightPart


@dataclass(frozen=True)
class Cut:
    """What a process keeps of a weight: spans of its rows (outputs) or of its columns (inputs), laid end to end."""

    along: Literal["rows", "columns"]
    spans: tuple[tuple[int, int], ...]

    def within(self, part: WeightPart) -> Cut:
        """The cut of the checkpoint's tensor that is `part` of the parameter that this cut is of."""
        if self.along == "columns":
            return self
        stop = part.start + part.rows
        clipped = [(max(first, part.start) - part.start, min(last, stop) - part.start) for first, last in self.spans]
        return Cut("rows", tuple(span for span in clipped if span[0] < span[1]))

    def axis(self, dimensions: int) -> int:
        """The axis, from behind, of a bias, a matrix or a stack of matrices."""
        return -1 if self.along == "columns" or dimensions == 1 else -2

    def of(self, weight: Tensor) -> Tensor:
        """The kept part of a whole weight: a bias `[out]`, a matrix `[out, in]` or a stack `[experts, out, in]`."""
        axis = self.axis(weight.dim())
        return torch.cat([weight.narrow(axis, first, last - first) for first, last in self.spans], dim=axis)


@dataclass(frozen=True)
class Shard:
    """The part of a model that process `rank` of `size` holds."""

    rank: int
    size: int

    def config(self, whole: BackboneConfig) -> BackboneConfig:
        """The architecture of the part. Raises `ConfigError` where the model cannot be split so."""
        check_divisible(whole, self.size)
        experts = whole.experts
        if experts is not None:
            inner, shared = experts.inner_size // self.size, experts.shared_size // self.size
            experts = replace(experts, inner_size=inner, shared_size=shared)
        return replace(
            whole,
            num_heads=whole.num_heads // self.size,
            num_kv_heads=whole.num_kv_heads // self.size,
            intermediate_size=whole.intermediate_size // self.size,
            experts=experts,
        )

    def cut(self, name: str, whole: BackboneConfig) -> Cut | None:
        """What this process holds of the backbone's parameter `name`; None where that is all of it."""
        split = _split(name, whole)
        if split is None:
            return None
        along, sections = split
        spans, start = [], 0
        for section in sections:
            share = section // self.size
            spans.append((start + self.rank * share, start + (self.rank + 1) * share))
            start += section
        return Cut(along, tuple(spans))

    def tensor_cuts(self, family: Family, whole: BackboneConfig) -> dict[str, Cut]:
        """What this process holds of each tensor of a checkpoint; tensors that it holds whole are absent."""
        return {
            part.name: cut.within(part)
            for name, parts in family.weights(whole).items()
            if (cut := self.cut(name, whole)) is not None
            for part in parts
        }


def _split(name: str, config: BackboneConfig) -> tuple[Literal["rows", "columns"], tuple[int, ...]] | None:
    """Along which axis a parameter is split, and the lengths of the sections that are each split evenly."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner = config.intermediate_size
    expert = 0 if config.experts is None else config.experts.inner_size
    shared = 0 if config.experts is None else config.experts.shared_size
    within_layer = name.split(".", 2)[-1]
    splits: dict[str, tuple[Literal["rows", "columns"], tuple[int, ...]]] = {
        "qkv.weight": ("rows", (queries, keys, keys)),
        "qkv.bias": ("rows", (queries, keys, keys)),
        "attention_out.weight": ("columns", (queries,)),
        "gate_up.weight": ("rows", (inner, inner)),
        "down.weight": ("columns", (inner,)),
        "experts.gate_up": ("rows", (expert, expert)),
        "experts.down": ("columns", (expert,)),
        "experts.shared_gate_up.weight": ("rows", (shared, shared)),
        "experts.shared_down.weight": ("columns", (shared,)),
    }
    return splits.get(within_layer) if name.startswith("layers.") else None


def check_divisible(config: BackboneConfig, size: int) -> None:
    """Raise `ConfigError` that names every width that `size` does not divide, and the sizes that divide all."""
    if size < 1:
        raise ConfigError(f"tensor_parallel_size={size} must be at least 1")
    widths = dict(_widths(config))
    faults = [f"{name}={width}" for name, width in widths.items() if width % size]
    if faults:
        common = math.gcd(*widths.values())
        fitting = ", ".join(str(number) for number in range(1, common + 1) if common % number == 0)
        raise ConfigError(
            f"tensor_parallel_size={size} does not divide the model's {', '.join(faults)}; it can be {fitting}"
        )


def _widths(config: BackboneConfig) -> Iterator[tuple[str, int]]:
    """What is split."""
    yield "num_heads", config.num_heads
    yield "num_kv_heads", config.num_kv_heads
    if not all(config.has_experts(layer) for layer in range(config.num_layers)):
        yield "intermediate_size", config.intermediate_size
    if config.experts is not None:
        yield "experts.inner_size", config.experts.inner_size
        if config.experts.shared_size:
            yield "experts.shared_size", config.experts.shared_size
