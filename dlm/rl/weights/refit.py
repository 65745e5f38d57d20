"""How NeMo-RL's training workers hand weights over: packed broadcasts, and shared memory announced over ZMQ.

Both say nothing of names and shapes, which come before as `{name: (shape, dtype)}` (`prepare_refit_info`). The formats
are those of NeMo-RL's `nemo_rl/utils/packed_tensor.py` and `nemo_rl/models/policy/utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore
from torch.multiprocessing.reductions import rebuild_cuda_tensor, rebuild_tensor

from dlm.errors import MissingExtraError, RunError
from dlm.rl.weights.update import Shapes

ALIGNMENT = 512
"""Bytes on whose multiples tensors begin in shared memory."""

TIMEOUT = timedelta(seconds=120)
ACKNOWLEDGED, COMPLETE = b"ack", "complete"


class Broadcasts(Protocol):
    """A group of processes of which one sends."""

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Fill `tensor` with what the process `src` has."""


class TorchGroup:
    """A group of torch's own, apart from the default one; the process with rank 0 keeps the store at `ip:port`.

    Args:
        ip, port: where the store listens.
        rank, world_size: which process this is, of how many.
        device: of the tensors: NCCL on CUDA, else gloo.
    """

    def __init__(self, ip: str, port: int, rank: int, world_size: int, device: torch.device) -> None:
        self._store = TCPStore(ip, port, world_size, is_master=rank == 0, timeout=TIMEOUT)
        store = PrefixStore("dlm/refit", self._store)
        if device.type == "cuda":
            self._group: Any = dist.ProcessGroupNCCL(store, rank, world_size, dist.ProcessGroupNCCL.Options())
        else:
            self._group = dist.ProcessGroupGloo(store, rank, world_size, TIMEOUT)

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Fill `tensor` with what the process `src` has. Raises `RuntimeError` when a process is gone."""
        self._group.broadcast(tensor, src).wait()

    def barrier(self) -> None:
        """Return when every process is here. Raises `RuntimeError` when one is gone."""
        self._group.barrier().wait()


def from_broadcasts(
    info: Shapes, group: Broadcasts, device: torch.device, packed_bytes: int
) -> Iterator[tuple[str, Tensor]]:
    """Tensors in the order of `info`, as process 0 broadcasts them.

    Args:
        info: what comes.
        group: over which it comes.
        device: where it is received.
        packed_bytes: one broadcast ends with the tensor that takes it beyond so many bytes; both sides must agree on
            the number. 0: each tensor goes alone.
    """
    waiting: list[str] = []
    size = 0
    for name in info:
        waiting.append(name)
        size += _num_bytes(info, name)
        if size > packed_bytes:
            yield from _unpacked(info, waiting, group, device)
            waiting, size = [], 0
    if waiting:
        yield from _unpacked(info, waiting, group, device)


def _unpacked(info: Shapes, names: list[str], group: Broadcasts, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    sizes = [_num_bytes(info, name) for name in names]
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    group.broadcast(buffer, 0)
    for name, part in zip(names, torch.split(buffer, sizes), strict=True):
        yield name, _shaped(info, name, part)


def from_shared_memory(info: Shapes, address: str, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Tensors as a process on the same device announces them over ZMQ at `address`.

    Each message is pickled: the handle of a buffer, the names of the tensors in it and the bytes that they take; it is
    answered once they are used. The sender is trusted, as one that can open the address on this machine.

    Raises:
        MissingExtraError: pyzmq is not installed.
        RunError: nothing came within two minutes, or something else than was announced.
    """
    try:
        import zmq
    except ImportError:
        raise MissingExtraError("pyzmq", "rl", "taking weights over ZMQ") from None
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.linger = 0
        socket.rcvtimeo = socket.sndtimeo = int(TIMEOUT.total_seconds() * 1000)
        socket.connect(address)
        try:
            while isinstance(message := socket.recv_pyobj(), tuple):
                handle, names, used = message
                yield from _in_buffer(info, names, used, _rebuilt(handle, device))
                if device.type == "cuda":
                    torch.cuda.synchronize(device)  # before the sender writes into the buffer again
                socket.send(ACKNOWLEDGED)
            if getattr(message, "value", message) != COMPLETE:
                raise RunError(f"the sender of weights said {message!r:.80}, which is neither a buffer nor the end")
            socket.send(ACKNOWLEDGED)
        except zmq.Again as error:
            raise RunError(
                f"no weights came at {address} within {TIMEOUT.total_seconds():.0f} s; does the trainer send there?"
            ) from error


def _rebuilt(handle: tuple[Any, ...], device: torch.device) -> Tensor:
    """The buffer behind what `torch.multiprocessing` makes of a tensor, without the function that it names first."""
    arguments = list(handle[0])
    if device.type != "cuda":
        rebuilt: Tensor = rebuild_tensor(*arguments)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return rebuilt
    arguments[6] = torch.cuda.current_device() if device.index is None else device.index
    opened: Tensor = rebuild_cuda_tensor(*arguments)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return opened


def _in_buffer(info: Shapes, names: list[str], used: int, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
    unknown = [name for name in names if name not in info]
    if unknown:
        raise RunError(f"the sender of weights sent {', '.join(unknown[:3])}, which prepare_refit_info did not name")
    sizes = [_num_bytes(info, name) for name in names]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    if starts[-1] != used:
        raise RunError(f"{', '.join(names[:3])}: {used} bytes were sent, prepare_refit_info makes them {starts[-1]}")
    for name, start, size in zip(names, starts, sizes, strict=False):
        yield name, _shaped(info, name, buffer[start : start + size])


def _num_bytes(info: Shapes, name: str) -> int:
    shape, dtype = info[name]
    return math.prod(shape) * dtype.itemsize


def _shaped(info: Shapes, name: str, part: Tensor) -> Tensor:
    """Bytes as the tensor that they are; copied where they do not begin on a multiple of its elements."""
    shape, dtype = info[name]
    aligned = part if part.storage_offset() % dtype.itemsize == 0 else part.clone()
    return aligned.view(dtype).view(tuple(shape))
