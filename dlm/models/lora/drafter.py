"""A LoRA adapter for drafts: added in the rows of a forward that draft, while all others see the weights as they are.

Nemotron-Labs-Diffusion publishes one for its `linear_spec`: active in the pass that drafts a block, off in the causal
pass that verifies it. One packed batch holds both kinds of rows, so the adapter stays beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dlm.errors import CheckpointError
from dlm.models.architecture import BackboneConfig
from dlm.models.arithmetic import Linear
from dlm.models.backbone import Backbone
from dlm.models.families import Family
from dlm.models.families.base import WeightPart
from dlm.models.lora.adapter import LoraAdapter
from dlm.models.sharding import Cut

KEY = "model.drafter_adapter_path"

ALGORITHM = "linear_spec"
"""The algorithm that drafts."""

PROJECTIONS = ("qkv", "attention_out", "gate_up", "down")
"""Parts of a layer that differ by row."""


class LowRank(nn.Module):
    """What an adapter adds to the outputs of a projection: `up (down x)`, in some rows.

    Args:
        down: `[rank, in]`, A.
        up: `[out, rank]`, scale * B.
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down, self.up = _linear(down), _linear(up)

    def forward(self, x: Tensor, out: Tensor, drafts: Tensor) -> Tensor:
        """`out [rows, out]`, what the projection gave for `x [rows, in]`, changed in place where `drafts [rows]` is
        true. The other rows keep their bits."""
        return torch.where(drafts.unsqueeze(1), self.up(self.down(x)).add_(out), out, out=out)


def _linear(weight: Tensor) -> Linear:
    made = Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


@dataclass(frozen=True)
class Drafter:
    """The drafter's adapter of one model, checked; its tensors are read when it is attached.

    Attributes:
        adapter: the tensors.
        sizes: backbone parameter -> its outputs and inputs.
        parts: backbone parameter -> the pieces of it that the adapter changes.
    """

    adapter: LoraAdapter
    sizes: Mapping[str, tuple[int, int]]
    parts: Mapping[str, tuple[WeightPart, ...]]

    @classmethod
    def read(cls, folder: Path, family: Family, config: BackboneConfig) -> Drafter:
        """Check a folder against a model; `CheckpointError` says what does not fit."""
        if ALGORITHM not in family.algorithms:
            raise CheckpointError(
                f"{KEY}={folder}: it is for the drafts of {ALGORITHM}, which {family.name} models do not run; leave it "
                "out, or merge it with model.adapter_path"
            )
        adapter = LoraAdapter.read(folder, family, config, KEY)
        with torch.device("meta"):
            weights = dict(Backbone(config).named_parameters())
        changed = {
            name: tuple(part for part in parts if part.name in adapter.scales)
            for name, parts in family.weights(config).items()
        }
        changed = {name: parts for name, parts in changed.items() if parts}
        known = {f"layers.{index}.{name}.weight" for index in range(config.num_layers) for name in PROJECTIONS}
        foreign = [part.name for name, parts in changed.items() if name not in known for part in parts]
        if foreign:
            raise CheckpointError(
                f"{KEY}={folder}: the adapter changes {', '.join(foreign[:3])}; a drafter's may change the projections "
                "of dense layers alone"
            )
        sizes = {name: (weights[name].shape[0], weights[name].shape[1]) for name in changed}
        return cls(adapter, sizes, changed)

    def _rank(self, name: str) -> int:
        """Rank of a parameter's adapter, those of its pieces laid end to end."""
        return sum(self.adapter.rank(part.name) for part in self.parts[name])

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Memory that it takes once attached to a whole model."""
        return sum(self._rank(name) * sum(size) for name, size in self.sizes.items()) * dtype.itemsize

    @torch.no_grad()
    def attach(self, backbone: Backbone, cut: Callable[[str], Cut | None] | None = None) -> None:
        """Give the adapter to a model, on its device and in its dtype.

        Args:
            backbone: the model, or a process's part of it.
            cut: what the process holds of a parameter; None where it holds all.
        """
        for name in self.parts:
            down, up = self._factors(name, torch.promote_types(backbone.dtype, torch.float32))
            held = None if cut is None else cut(name)
            if held is not None and held.along == "rows":
                up = held.of(up)
            elif held is not None:
                down = held.of(down)
            _, index, projection, _ = name.split(".")
            layer = backbone.get_submodule(f"layers.{index}.drafter")
            assert isinstance(layer, nn.ModuleDict)  # a path does not say what is at its end
            layer[projection] = LowRank(*(factor.to(backbone.device, backbone.dtype) for factor in (down, up)))

    def _factors(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and scale * B of a parameter: of a fused one each piece has ranks of its own, and B is zero elsewhere."""
        out, width = self.sizes[name]
        down, up = torch.zeros(self._rank(name), width, dtype=dtype), torch.zeros(out, self._rank(name), dtype=dtype)
        first = 0
        for part in self.parts[name]:
            mine, theirs = self.adapter.factors(part.name)
            ranks = slice(first, first + len(mine))
            down[ranks] = mine
            up[part.start : part.start + part.rows, ranks] = self.adapter.scales[part.name] * theirs.to(dtype)
            first += len(mine)
        return down, up
