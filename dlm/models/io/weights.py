"""A model's tensors under the family's names, wherever they lie: what is loaded and what is converted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlm.models.backbone import BackboneConfig
from dlm.models.families import Family
from dlm.models.io.naming import Match, match
from dlm.models.io.sources import SafetensorsSource, TensorSource
from dlm.models.lora.adapter import LoraAdapter
from dlm.models.sharding import Cut


@dataclass(frozen=True)
class ModelTensors:
    """The tensors of one model, their names and shapes checked.

    Attributes:
        source, found: where they lie and what they are called there.
        target_dtype: of floating-point tensors; None keeps the stored one.
        adapter: merged into the weights as they are read.
    """

    source: TensorSource
    found: Match
    target_dtype: torch.dtype | None = None
    adapter: LoraAdapter | None = None

    @classmethod
    def find(
        cls,
        source: TensorSource,
        family: Family,
        config: BackboneConfig,
        *,
        prefix: str | None = None,
        dtype: torch.dtype | None = None,
        adapter: Path | None = None,
    ) -> ModelTensors:
        """Check a source and an adapter's folder against a model; no weight is read. Raises `CheckpointError`."""
        found = match(source, family, config, prefix)
        changes = None if adapter is None else LoraAdapter.read(adapter, family, config)
        return cls(source, found, dtype, changes)

    @property
    def label(self) -> str:
        """What messages call the source."""
        return self.source.label

    def names(self) -> Sequence[str]:
        """The family's names, in the order in which they are read fastest."""
        return list(self.found.stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.source.shape(self.found.stored[name])

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which a tensor is read."""
        stored = self.source.dtype(self.found.stored[name])
        return self.target_dtype if self.target_dtype is not None and stored.is_floating_point else stored

    def num_bytes(self, name: str) -> int:
        """Size of a tensor as it is read."""
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    def read(self, name: str, cut: Cut | None = None) -> Tensor:
        """A tensor on the CPU, the adapter merged; with `cut` that part of it.

        Of safetensors only the part is read, but for tensors that an adapter changes.
        """
        stored, source = self.found.stored[name], self.source
        adapted = self.adapter is not None and name in self.adapter.scales
        if cut is not None and isinstance(source, SafetensorsSource) and not adapted:
            axis = cut.axis(len(self.shape(name)))
            spans = [source.read_span(stored, axis, first, last) for first, last in cut.spans]
            return torch.cat(spans, dim=axis).to(self.dtype(name))
        tensor = source.read(stored)
        if self.adapter is not None:
            tensor = self.adapter.merged(name, tensor, self.dtype(name))
        return (tensor if cut is None else cut.of(tensor)).to(self.dtype(name))
