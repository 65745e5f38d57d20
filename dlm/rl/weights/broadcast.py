"""Weight updates over a `torch.distributed` process group: one process sends, all others receive.

The training process calls `send_weights(module.named_parameters(), version=7, group=group)`, and every other process of
the group calls `rollouts.update_weights_from_group(group)` at the same time. Names, shapes and version are sent first;
if any process cannot take them, all of them raise and nothing is changed anywhere. torch unpickles what arrives, so the
group's processes must trust each other, as those of one training run do.
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
    """What will be sent, in this order, and the resulting version."""

    shapes: Shapes
    version: int


def send_weights(named_tensors: NamedTensors, *, version: int, group: Any = None) -> None:
    """Send the weights to every other process of the group.

    Args:
        named_tensors: all of the model's tensors; names as in `Rollouts.update_weights`.
        version: their version at the receivers.
        group: torch.distributed group; None is the default one.

    Raises:
        CheckpointError: a process cannot take them; includes its rank and reason.
    """
    tensors = gathered(named_tensors)
    source = dist.get_rank()
    dist.broadcast_object_list([Announcement(shapes_of(tensors), version)], source, group=group)
    agree(None, group)
    device = wire_device(group)
    for tensor in tensors.values():
        dist.broadcast(tensor.detach().to(device).contiguous(), source, group=group)


def announced(source: int, group: Any = None) -> Announcement:
    """The announcement of process `source` (its rank in the default group)."""
    box: list[Any] = [None]
    dist.broadcast_object_list(box, source, group=group)
    received: Announcement = box[0]
    return received


def agree(fault: str | None, group: Any = None) -> None:
    """Exchange faults (None: ready) with the group. Raises `CheckpointError` naming every rank that has one."""
    verdicts: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(verdicts, fault, group=group)
    faults = [f"rank {rank} of the group: {reason}" for rank, reason in enumerate(verdicts) if reason is not None]
    if faults:
        raise CheckpointError(f"no weights were sent: {'; '.join(faults)}")


def received(announcement: Announcement, source: int, group: Any = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors as they arrive."""
    device = wire_device(group)
    for name, (shape, dtype) in announcement.shapes.items():
        tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
        dist.broadcast(tensor, source, group=group)
        yield name, tensor


def wire_device(group: Any) -> torch.device:
    """The device that the group's backend needs tensors on."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
    )
