"""LoRA in training: what is learnt is added to a frozen model's projections (arXiv 2106.09685).

    lora = Lora(checkpoint.backbone.requires_grad_(False), checkpoint.family, LoraOptions(rank=16))
    optimizer = AdamW(lora.parameters())            # the model now computes W x + alpha / rank * B A x
    lora.save(folder)                               # in PEFT's format, as model.adapter_path= and PEFT read it

Adapters that are already trained are merged into the weights as they are read (`dlm.models.lora.adapter`). PEFT itself
would put modules around the projections, and so rename the weights that are copied, saved and broadcast by name; and it
knows nothing of fused ones, of which each tensor of the checkpoint gets an A and a B here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dlm.errors import ConfigError
from dlm.models.arithmetic import PROVED
from dlm.models.backbone import Backbone
from dlm.models.families import Family
from dlm.models.families.base import WeightPart
from dlm.models.lora.adapter import write_adapter

ALPHA = 16.0
"""Where nothing else is asked."""


@dataclass(frozen=True)
class LoraOptions:
    """An adapter in training.

    Attributes:
        rank: of what is added to each projection; 0 trains the weights themselves.
        alpha: what is added counts `alpha / rank`.
        targets: last parts of the checkpoint's names of projections, such as `q_proj`; None is all of every layer but
            those of routed experts.
    """

    rank: int = 0
    alpha: float = ALPHA
    targets: Sequence[str] | None = None

    def faults(self) -> list[str]:
        """What is wrong with the values, each with its key and remedy."""
        found = []
        if not self.rank and (self.targets is not None or self.alpha != ALPHA):
            given = f"lora.alpha={self.alpha}" if self.targets is None else f"lora.targets={list(self.targets)}"
            found.append(f"{given}: nothing is adapted with lora.rank=0; write lora.rank=16, or leave it out")
        if self.rank < 0:
            found.append(f"lora.rank={self.rank}: must be at least 1, or 0 to train the weights")
        if not 0 < self.alpha < math.inf:
            found.append(f"lora.alpha={self.alpha}: must be a number above 0")
        if isinstance(self.targets, str) or (self.targets is not None and not self.targets):
            found.append(f"lora.targets={self.targets!r}: must be a list of names such as [q_proj], or null for all")
        return found


class Lora(nn.Module):
    """Additions to a model's projections; its parameters are float32, beside weights of any dtype.

    The first ones add nothing: A is drawn as PEFT draws it (uniform, Kaiming with a = sqrt 5), B is 0.

    Args:
        backbone: the model, which is changed in what it computes and gets the adapter as its submodule `lora`; freeze
            its own weights before.
        family: of the model, whose names the adapter is saved under.
        options: rank, scale and places; the rank is above 0.
        seed: of A.

    Attributes:
        weights: the model's own parameters by name.

    Raises:
        ConfigError: a target that the family does not have.
    """

    def __init__(self, backbone: Backbone, family: Family, options: LoraOptions, seed: int = 0) -> None:
        super().__init__()
        self.options = options
        self.weights = dict(backbone.named_parameters())
        self._active = True
        self.additions = nn.ModuleDict()
        self._by_name: dict[str, LoraDelta] = {}
        generator = torch.Generator().manual_seed(seed)
        for name, parts in _targeted(backbone, family, options.targets).items():
            addition = LoraDelta(backbone.get_parameter(name), parts, options, generator)
            self.additions[name.replace(".", "/")] = self._by_name[name] = addition
            linear = backbone.get_submodule(name.removesuffix(".weight"))
            linear.register_forward_hook(lambda _, given, out, added=addition: self._with(added, given[0], out))
        backbone.add_module("lora", self)

    def _with(self, addition: LoraDelta, x: Tensor, out: Tensor) -> Tensor:
        return out + addition(x) if self._active else out

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model as it was without the adapter."""
        self._active = False
        try:
            yield
        finally:
            self._active = True

    @torch.no_grad()
    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Each of the model's own parameters by name, with what the adapter adds to it: those sums in float32, or
        wider, for who takes them to round once."""
        for name, weight in self.weights.items():
            if name not in self._by_name:
                yield name, weight
                continue
            wide = torch.promote_types(weight.dtype, torch.float32)
            yield name, weight.to(wide) + self._by_name[name].product()

    def save(self, folder: Path, base: str | None = None) -> None:
        """Make a folder with `adapter_config.json`, which names `base` as its model, and `adapter_model.safetensors`,
        in the names of the family's checkpoints."""
        factors = {name: pair for addition in self._by_name.values() for name, pair in addition.factors()}
        write_adapter(folder, factors, rank=self.options.rank, alpha=self.options.alpha, base=base)


def adapter_of(backbone: Backbone) -> Lora | None:
    """The adapter in training of a model; None where it has none."""
    found = backbone._modules.get("lora")
    return found if isinstance(found, Lora) else None


class LoraDelta(nn.Module):
    """What is added to a projection; a fused one has an A and a B for each tensor that checkpoints make of it.

    Args:
        weight: of the projection, `[out, in]`.
        parts: its pieces from the first row to the last, each with whether it is adapted.
        options: rank and scale.
        generator: of A.
    """

    def __init__(
        self, weight: Tensor, parts: Sequence[tuple[WeightPart, bool]], options: LoraOptions, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.parts, self.scale = parts, options.alpha / options.rank
        adapted = [part for part, chosen in parts if chosen]
        down = torch.empty(len(adapted) * options.rank, weight.shape[1])
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.ParameterList(torch.zeros(part.rows, options.rank, device=weight.device) for part in adapted)

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, in]` to `[rows, out]`, in the dtype of `x` or that of autocast."""
        low = iter(PROVED.linear(x, self.down.to(x.dtype)).chunk(len(self.up), dim=-1))
        up = iter(self.up)
        added = [
            PROVED.linear(next(low), next(up).to(x.dtype)) * self.scale if chosen else x.new_zeros(len(x), part.rows)
            for part, chosen in self.parts
        ]
        return added[0] if len(added) == 1 else torch.cat(added, dim=-1)

    def factors(self) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """The checkpoint's name, A `[rank, in]` and B `[rows, rank]` of each piece."""
        names = [part.name for part, chosen in self.parts if chosen]
        downs = self.down.detach().chunk(len(names))
        for name, down, up in zip(names, downs, self.up, strict=True):
            yield name, (down, up.detach())

    def product(self) -> Tensor:
        """`[out, in]` float32: what the adapter adds to the weight."""
        found = dict(self.factors())
        rows = [
            self.scale * (found[part.name][1] @ found[part.name][0])
            if chosen
            else self.down.new_zeros(part.rows, self.down.shape[1])
            for part, chosen in self.parts
        ]
        return torch.cat(rows)


def _targeted(
    backbone: Backbone, family: Family, targets: Sequence[str] | None
) -> dict[str, list[tuple[WeightPart, bool]]]:
    """Parameter -> its pieces in order, each with whether it is adapted; those without one are left out."""
    linears = {
        f"layers.{name}.weight" for name, module in backbone.layers.named_modules() if isinstance(module, nn.Linear)
    }
    matrices = {
        name: sorted(parts, key=lambda part: part.start)
        for name, parts in family.weights(backbone.config).items()
        if name in linears
    }
    known = sorted({_last(part) for parts in matrices.values() for part in parts})
    unknown = [target for target in targets or () if target not in known]
    if unknown:
        raise ConfigError(
            f"lora.targets={list(targets or ())}: {family.name} has no {unknown[0]!r}; known: {', '.join(known)}"
        )
    chosen = {
        name: [(part, targets is None or _last(part) in targets) for part in parts] for name, parts in matrices.items()
    }
    return {name: parts for name, parts in chosen.items() if any(adapted for _, adapted in parts)}


def _last(part: WeightPart) -> str:
    """`q_proj` of `model.layers.0.self_attn.q_proj.weight`."""
    return part.name.split(".")[-2]
