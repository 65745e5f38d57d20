"""New weights over a `torch.distributed` process group: one process has them, all others take them.

In the process that trains `send_weights(module.named_parameters(), version=7, group=group)`, and in every other process
of the group at the same time `rollouts.update_weights_from_group(group)`. The names, shapes and version go first; when
one process cannot take them all of them raise, and nothing was changed anywhere. What arrives is unpickled by torch, so
the group's processes must trust each other, as those of one training run do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlm.errors import CheckpointError
from dlm.rl.weights.update import NamedTensors, Shapes, gathered, shapes_of


@dataclass(frozen=True)
class Announcement:
    """What is going to be sent, in this order, and the version that it makes."""

    shapes: Shapes
    version: int


def send_weights(named_tensors: NamedTensors, *, version: int, group: Any = None) -> None:
    """Give the weights to every other process of the group.

    Args:
        named_tensors: complete; names as in `Rollouts.update_weights`.
        version: what the receivers call them.
        group: of torch.distributed; None is the default one.

    Raises:
        CheckpointError: a process cannot take them; with its rank and reason.
    """
    tensors = gathered(named_tensors)
    source = dist.get_rank()
    dist.broadcast_object_list([Announcement(shapes_of(tensors), version)], source, group=group)
    agree(None, group)
    device = wire_device(group)
    for tensor in tensors.values():
        dist.broadcast(tensor.detach().to(device).contiguous(), source, group=group)


def announced(source: int, group: Any = None) -> Announcement:
    """What the process `source` (its rank in the default group) is going to send."""
    box: list[Any] = [None]
    dist.broadcast_object_list(box, source, group=group)
    received: Announcement = box[0]
    return received


def agree(fault: str | None, group: Any = None) -> None:
    """Tell the others why this process cannot go on, None where it can. `CheckpointError` names all who cannot."""
    verdicts: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(verdicts, fault, group=group)
    faults = [f"rank {rank} of the group: {reason}" for rank, reason in enumerate(verdicts) if reason is not None]
    if faults:
        raise CheckpointError(f"the weights were sent to nobody: {'; '.join(faults)}")


def received(announcement: Announcement, source: int, group: Any = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they come."""
    device = wire_device(group)
    for name, (shape, dtype) in announcement.shapes.items():
        tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
        dist.broadcast(tensor, source, group=group)
        yield name, tensor


def wire_device(group: Any) -> torch.device:
    """Where tensors must lie for the group's backend."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
    )
