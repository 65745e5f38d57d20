"""Weight updates for a model in use: every name and shape is checked before anything is written.

Names are those of the family's checkpoints or of `Backbone`'s parameters, with or without the prefixes and infixes that
wrappers and trainers add (`dlm.models.io.naming`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlm.errors import CheckpointError
from dlm.models.backbone import Backbone
from dlm.models.families import Family, family_of
from dlm.models.io.dcp.folder import DcpSource
from dlm.models.io.dcp.metadata import METADATA
from dlm.models.io.files import read_json
from dlm.models.io.naming import family_places, find_names
from dlm.models.io.sources import SafetensorsSource, TensorSource

LABEL = "update_weights"
NAMED = 8
"""Maximum number of tensors listed in a message."""

Shapes = Mapping[str, tuple[Sequence[int], torch.dtype]]
NamedTensors = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


def gathered(named_tensors: NamedTensors) -> dict[str, Tensor]:
    """Names and tensors as a dictionary. Raises `CheckpointError` for a duplicate name or an unusable tensor."""
    pairs = named_tensors.items() if isinstance(named_tensors, Mapping) else named_tensors
    tensors: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if not isinstance(name, str):
            raise CheckpointError(f"{LABEL}: {name!r} is not a name; pass (name, tensor) pairs")
        if name in tensors:
            raise CheckpointError(f"{LABEL}: {name} is given twice")
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            what = "on the meta device" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise CheckpointError(f"{LABEL}: {name} is {what}; pass a tensor with data")
        if tensor.layout != torch.strided:
            raise CheckpointError(f"{LABEL}: {name} has layout {tensor.layout}; pass its to_dense()")
        if hasattr(tensor, "full_tensor"):
            raise CheckpointError(f"{LABEL}: {name} is sharded over processes; pass its full_tensor()")
        tensors[name] = tensor
    return tensors


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shape and dtype of each tensor."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def folder_source(path: str | Path, backbone: Backbone) -> TensorSource:
    """The tensors of a safetensors or `torch.distributed.checkpoint` folder, without reading them.

    Raises `CheckpointError`: unreadable, or its config.json has a different architecture than `backbone`.
    """
    try:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"{folder!s:.200}: no such folder; give one with safetensors or a DCP checkpoint")
        file = folder / "config.json"
        if file.exists():
            config = read_json(file)
            if family_of(config, file).read_config(config, file) != backbone.config:
                raise CheckpointError(f"{file} has a different architecture than the model in use")
        return DcpSource(folder) if (folder / METADATA).exists() else SafetensorsSource(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: "~name" of a user that does not exist
        raise CheckpointError(f"{path!s:.200} cannot be read ({error!s:.200}); give another folder") from error


def source_shapes(source: TensorSource) -> Shapes:
    """Shape and dtype of each tensor of a folder."""
    return {name: (source.shape(name), source.dtype(name)) for name in source.names()}


def own_parameters(backbone: Backbone) -> dict[str, Tensor]:
    """The model's own parameters by name. Updates never touch a drafter or an adapter."""
    return {
        name: values.detach() for name, values in backbone.named_parameters()
        if not {"drafter", "lora"} & set(name.split("."))
    }  # fmt: skip


@dataclass(frozen=True)
class _Names:
    """Bare names, as a source for `find_names`."""

    given: Sequence[str]
    label: str = LABEL

    def names(self) -> Sequence[str]:
        return self.given


class WeightWriter:
    """Writes the tensors of one complete update into the model.

    Args:
        shapes: shape and dtype of each announced tensor.
        family: the model's family.
        backbone: the model.

    Attributes:
        begun: whether anything was written.

    Raises:
        CheckpointError: tensors are missing, unknown, or of a wrong shape or dtype (named); nothing was written.
    """

    def __init__(self, shapes: Shapes, family: Family, backbone: Backbone) -> None:
        self.begun = False
        self._places, self._embedding, copies = _places(list(shapes), family, backbone)
        self._copies = dict.fromkeys(copies, self._places[self._embedding])
        wrong = [
            f"{name} has shape {list(shape)}, the model's has {list(place.shape)}"
            for name, place in (self._places | self._copies).items()
            if tuple(shape := shapes[name][0]) != tuple(place.shape)
        ]
        wrong += [f"{name} holds {shapes[name][1]}" for name in self.names if not shapes[name][1].is_floating_point]
        if wrong:
            more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            raise CheckpointError(f"{LABEL}: {'; '.join(wrong[:NAMED])}{more}; nothing was changed")
        self._left = set(self.names)
        self._foreign = set(shapes) - self._left
        self._late: dict[str, Tensor] = {}

    @property
    def names(self) -> Sequence[str]:
        """The given names that belong to the model, without other state that a trainer sends along."""
        return [*self._places, *self._copies]

    def write_all(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors that are all in memory; copies of a tied weight are compared with it first."""
        for name in self._copies:
            weight = tensors[self._embedding]
            if not torch.equal(tensors[name].to(weight.device, weight.dtype), weight):
                raise CheckpointError(
                    f"{LABEL}: the model ties {name} to {self._embedding}, and the two differ; nothing was changed"
                )
        for name in self.names:
            self.write(name, tensors[name])

    def write_stream(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write tensors as they arrive; announced tensors that are not the model's are skipped."""
        for name, tensor in named_tensors:
            if name in self._left or name not in self._foreign:
                self.write(name, tensor)

    @torch.no_grad()
    def write(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor into the model's own memory, converting to its dtype.

        Raises `CheckpointError` if it was not announced, or was announced with a different shape.
        """
        if name not in self._left:
            raise CheckpointError(f"{LABEL}: {name} was not announced, or arrived twice")
        place = self._places[name] if name in self._places else self._copies[name]
        if tensor.shape != place.shape:
            raise CheckpointError(f"{LABEL}: {name} was announced as {list(place.shape)} but is {list(tensor.shape)}")
        self._left.discard(name)
        if name in self._copies:
            self._late[name] = tensor.clone()  # the receive buffer may be reused
            return
        self.begun = True
        place.copy_(tensor)

    def finish(self) -> None:
        """Raise `CheckpointError` unless everything arrived."""
        if self._left:
            missing = ", ".join(sorted(self._left)[:NAMED])
            raise CheckpointError(f"{LABEL}: {len(self._left)} tensors did not arrive ({missing})")
        for name, tensor in self._late.items():
            place = self._copies[name]
            if not torch.equal(tensor.to(place.device, place.dtype), place):
                raise CheckpointError(f"{LABEL}: the model ties {name} to {self._embedding}, and the two differ")


@torch.no_grad()
def _places(given: Sequence[str], family: Family, backbone: Backbone) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The model's tensor for each given name; the given name of the embedding; and the given names of copies of a
    weight tied to it. Raises `CheckpointError`."""
    config = backbone.config
    theirs = family_places(family, backbone)
    own = own_parameters(backbone)
    if _hits(given, own) <= _hits(given, theirs):
        found = find_names(_Names(given), family, config, theirs, None)
        embedding = family.weights(config)["embedding.weight"][0].name
        places, copies = theirs, found.tied
    else:
        tied = tuple(name for name in given if config.tie_embeddings and name.split(".")[-2:] == ["lm_head", "weight"])
        found = find_names(_Names([name for name in given if name not in tied]), family, config, own, None)
        embedding, places, copies = "embedding.weight", own, tied
    return {stored: places[name] for name, stored in found.stored.items()}, found.stored[embedding], copies


def _hits(given: Sequence[str], known: Mapping[str, Tensor]) -> int:
    """Number of given names that end in a known one."""
    parts = [name.split(".") for name in given]
    return sum(any(".".join(part[start:]) in known for start in range(len(part))) for part in parts)
