"""Tensors of one update that come a few at a time: each is checked when it comes, and kept on the host until the model
is complete. Nothing is written before, so that a sender that is gone leaves the model as it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlm.errors import CheckpointError
from dlm.models.backbone import Backbone, BackboneConfig
from dlm.models.families import Family
from dlm.models.io.naming import WRAPPERS, common_head, family_shapes
from dlm.rl.weights.update import LABEL, NAMED, own_parameters

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Naming:
    """One way to call a model's tensors.

    Attributes:
        head: what all names have in front; senders often leave it out, and so do the other attributes.
        shapes: of all, those among them that may be copies of a tied weight.
        needed: names without which the model is not complete.
    """

    head: str
    shapes: Mapping[str, Shape]
    needed: frozenset[str]

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], needed: Collection[str]) -> Naming:
        """From whole names."""
        head = common_head(needed)
        short = {name.removeprefix(head): shape for name, shape in shapes.items()}
        return cls(head, short, frozenset(name.removeprefix(head) for name in needed))

    def find(self, name: str) -> str | None:
        """Which tensor `name` is, whatever wrappers and trainers have put before and into it."""
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        return next((ending for ending in endings if ending in self.shapes), None)


class PartialUpdate:
    """What has come of an update.

    Args:
        family, config: of the model.

    Attributes:
        tensors: by the name under which each came, on the host.
    """

    def __init__(self, family: Family, config: BackboneConfig) -> None:
        untied = replace(config, tie_embeddings=False)
        self._namings = (
            Naming.of(family_shapes(family, untied), family_shapes(family, config)),
            Naming.of(_own_shapes(untied), _own_shapes(config)),
        )
        self._found: tuple[set[str], ...] = tuple(set() for _ in self._namings)
        self.tensors: dict[str, Tensor] = {}

    def check(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Raise `CheckpointError` unless such a tensor is one of the model's and has not come yet."""
        if name in self.tensors:
            raise CheckpointError(f"{LABEL}: {name} is given twice")
        if not dtype.is_floating_point:
            raise CheckpointError(f"{LABEL}: {name} holds {dtype}")
        found = [naming.shapes[known] for naming in self._namings if (known := naming.find(name)) is not None]
        if not found:
            raise CheckpointError(f"{LABEL}: {name} is unknown to this model")
        if tuple(shape) not in found:
            raise CheckpointError(f"{LABEL}: {name} has shape {list(shape)}, the model's has {list(found[0])}")

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor. Raises as `check`."""
        self.check(name, tensor.shape, tensor.dtype)
        self.tensors[name] = tensor.detach().to("cpu")
        for naming, found in zip(self._namings, self._found, strict=True):
            known = naming.find(name)
            if known is not None:
                found.add(known)

    @property
    def complete(self) -> bool:
        """Whether all of the model's tensors are here, under one of their namings."""
        return any(naming.needed <= found for naming, found in zip(self._namings, self._found, strict=True))

    def check_complete(self) -> None:
        """Raise `CheckpointError` that names what is missing."""
        if self.complete:
            return
        naming, found = max(zip(self._namings, self._found, strict=True), key=lambda pair: len(pair[1]))
        missing = [naming.head + name for name in sorted(naming.needed - found)]
        raise CheckpointError(
            f"{LABEL}: {len(missing)} of {len(naming.needed)} tensors are missing ({', '.join(missing[:NAMED])}); "
            "nothing was changed"
        )


def _own_shapes(config: BackboneConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        backbone = Backbone(config)
    return {name: tuple(values.shape) for name, values in own_parameters(backbone).items()}
