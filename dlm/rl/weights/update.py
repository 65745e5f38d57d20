"""New weights for a model that is in use: every name and shape is checked before the first number is written.

Names are those of the family's checkpoints or those of `Backbone`'s parameters, with or without what wrappers and
trainers put before and into them (`dlm.models.io.naming`).
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
"""Tensors that a message names."""

Shapes = Mapping[str, tuple[Sequence[int], torch.dtype]]
NamedTensors = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


def gathered(named_tensors: NamedTensors) -> dict[str, Tensor]:
    """Names and tensors as a dictionary. `CheckpointError` names what is given twice or is no plain tensor."""
    pairs = named_tensors.items() if isinstance(named_tensors, Mapping) else named_tensors
    tensors: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if not isinstance(name, str):
            raise CheckpointError(f"{LABEL}: {name!r} is no name; give pairs of a name and a tensor")
        if name in tensors:
            raise CheckpointError(f"{LABEL}: {name} is given twice")
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            what = "on the meta device" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise CheckpointError(f"{LABEL}: {name} is {what}; give a tensor that holds numbers")
        if tensor.layout != torch.strided:
            raise CheckpointError(f"{LABEL}: {name} is of layout {tensor.layout}; give its to_dense()")
        if hasattr(tensor, "full_tensor"):
            raise CheckpointError(f"{LABEL}: {name} is sharded over processes; give its full_tensor()")
        tensors[name] = tensor
    return tensors


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shape and dtype of each."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def folder_source(path: str | Path, backbone: Backbone) -> TensorSource:
    """The tensors of a folder of safetensors or of `torch.distributed.checkpoint`; none is read.

    Raises `CheckpointError`: unreadable, or its config.json is of another architecture than `backbone`.
    """
    try:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"{folder!s:.200}: no such folder; it holds safetensors or a distributed checkpoint")
        file = folder / "config.json"
        if file.exists():
            config = read_json(file)
            if family_of(config, file).read_config(config, file) != backbone.config:
                raise CheckpointError(f"{file} is of another architecture than the model in use")
        return DcpSource(folder) if (folder / METADATA).exists() else SafetensorsSource(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: "~name" of a user that there is not
        raise CheckpointError(f"{path!s:.200} cannot be read ({error!s:.200}); give another folder") from error


def source_shapes(source: TensorSource) -> Shapes:
    """Shape and dtype of each tensor of a folder."""
    return {name: (source.shape(name), source.dtype(name)) for name in source.names()}


def own_parameters(backbone: Backbone) -> dict[str, Tensor]:
    """The model's own parameters by name. A drafter and an adapter stay as they are, whatever weights are given."""
    return {
        name: values.detach() for name, values in backbone.named_parameters()
        if not {"drafter", "lora"} & set(name.split("."))
    }  # fmt: skip


@dataclass(frozen=True)
class _Names:
    """Names alone, for `find_names`."""

    given: Sequence[str]
    label: str = LABEL

    def names(self) -> Sequence[str]:
        return self.given


class WeightWriter:
    """Where the tensors of one complete update belong.

    Args:
        shapes: what is going to be given.
        family: of the model.
        backbone: the model.

    Attributes:
        begun: something was written.

    Raises:
        CheckpointError: names every tensor of a wrong shape or kind, or those that are missing or unknown; nothing was
            written.
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
        """Those of the given names that are the model's; what a trainer keeps beside its weights is not."""
        return [*self._places, *self._copies]

    def write_all(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors that are all there; copies of a tied weight are compared with it before the first is."""
        for name in self._copies:
            weight = tensors[self._embedding]
            if not torch.equal(tensors[name].to(weight.device, weight.dtype), weight):
                raise CheckpointError(
                    f"{LABEL}: the model ties {name} to {self._embedding}, and the two differ; nothing was changed"
                )
        for name in self.names:
            self.write(name, tensors[name])

    def write_stream(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write tensors as they come; those announced that are not the model's are passed over."""
        for name, tensor in named_tensors:
            if name in self._left or name not in self._foreign:
                self.write(name, tensor)

    @torch.no_grad()
    def write(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor to its place, into the memory and the dtype that the model has there.

        Raises `CheckpointError` for one that was not announced, or was announced with another shape.
        """
        if name not in self._left:
            raise CheckpointError(f"{LABEL}: {name} was not announced, or came twice")
        place = self._places[name] if name in self._places else self._copies[name]
        if tensor.shape != place.shape:
            raise CheckpointError(f"{LABEL}: {name} was announced as {list(place.shape)} and is {list(tensor.shape)}")
        self._left.discard(name)
        if name in self._copies:
            self._late[name] = tensor.clone()  # what it came in may be used again
            return
        self.begun = True
        place.copy_(tensor)

    def finish(self) -> None:
        """Raise `CheckpointError` unless everything came."""
        if self._left:
            raise CheckpointError(f"{LABEL}: {len(self._left)} did not come ({', '.join(sorted(self._left)[:NAMED])})")
        for name, tensor in self._late.items():
            place = self._copies[name]
            if not torch.equal(tensor.to(place.device, place.dtype), place):
                raise CheckpointError(f"{LABEL}: the model ties {name} to {self._embedding}, and the two differ")


@torch.no_grad()
def _places(given: Sequence[str], family: Family, backbone: Backbone) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """For each given name the model's memory that it is for; the given name of the embedding; and those of copies of a
    weight that is tied to it. Raises `CheckpointError`."""
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
    """How many of the given names end in a known one."""
    parts = [name.split(".") for name in given]
    return sum(any(".".join(part[start:]) in known for start in range(len(part))) for part in parts)
