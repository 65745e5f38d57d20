"""An update whose tensors arrive a few at a time: each is checked on arrival and kept on the host until the model is
complete. Nothing is written before then, so a sender that disappears leaves the model unchanged."""

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
    """One naming scheme for a model's tensors.

    Attributes:
        head: common prefix of all names; senders often omit it, and the other attributes do too.
        shapes: shape of every tensor by name, including possible copies of a tied weight.
        needed: names required for the model to be complete.
    """

    head: str
    shapes: Mapping[str, Shape]
    needed: frozenset[str]

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], needed: Collection[str]) -> Naming:
        """Build from full names."""
        head = common_head(needed)
        short = {name.removeprefix(head): shape for name, shape in shapes.items()}
        return cls(head, short, frozenset(name.removeprefix(head) for name in needed))

    def find(self, name: str) -> str | None:
        """Resolve `name` to a known tensor name, ignoring prefixes and infixes added by wrappers and trainers."""
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        return next((ending for ending in endings if ending in self.shapes), None)


class PartialUpdate:
    """The tensors of an update received so far.

    Args:
        family, config: the model's family and config.

    Attributes:
        tensors: received tensors by the name they arrived under, on the host.
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
        """Raise `CheckpointError` unless the model has such a tensor and it has not arrived yet."""
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
        """Check and store a tensor. Raises as `check`."""
        self.check(name, tensor.shape, tensor.dtype)
        self.tensors[name] = tensor.detach().to("cpu")
        for naming, found in zip(self._namings, self._found, strict=True):
            known = naming.find(name)
            if known is not None:
                found.add(known)

    @property
    def complete(self) -> bool:
        """Whether all of the model's tensors have arrived, under one of the naming schemes."""
        return any(naming.needed <= found for naming, found in zip(self._namings, self._found, strict=True))

    def check_complete(self) -> None:
        """Raise `CheckpointError` naming the missing tensors, if any."""
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
