"""The processes that share one model: how they find each other, sum partial results, and hear what rank 0 says.

A group is an object, not torch's global process group, so that a program may have several. Rank 0 leads: it tells the
others what to do next. Numbers and messages go over gloo and may take for ever, as a server may have nothing to do for
days; sums go over the device's own backend and must come within `SUM_TIMEOUT`.

Knows nothing of models and decoding.
"""

from __future__ import annotations

import io
import os
import pickle
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dlm.errors import ConfigError, RunError

FOR_EVER = timedelta(days=365)
SUM_TIMEOUT = timedelta(minutes=10)
GATHERING = 180.0
"""Seconds for all processes to start and find each other; weights are loaded later."""
POLL = 0.02


class ParallelGroup:
    """One process's membership.

    Args:
        store: where the processes find each other; its keys belong to this group alone.
        rank, size: which of how many processes this is.
        backend: of the sums: `gloo` or `nccl`.
        hostname: address at which gloo listens; None takes that of the machine's name.
        explain: says what became of a process that is gone; called when a message or a sum fails.
        alive: raises when a process ended before all had come.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        backend: str = "gloo",
        hostname: str | None = None,
        explain: Callable[[], str] | None = None,
        alive: Callable[[], None] | None = None,
    ) -> None:
        self.rank, self.size, self.backend = rank, size, backend
        self.broken = False
        self._explain = explain
        _gather(store, rank, size, alive)
        control = _gloo(PrefixStore("control", store), rank, size, FOR_EVER, hostname)
        sums = PrefixStore("sums", store)
        if backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = SUM_TIMEOUT
            summing: Any = dist.ProcessGroupNCCL(sums, rank, size, options)
        else:
            summing = _gloo(sums, rank, size, SUM_TIMEOUT, hostname)
        self._control, self._sums = [control], [summing]
        self._finalizer = weakref.finalize(self, _disconnect, self._control, self._sums)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def total(self, partial: Tensor) -> Tensor:
        """The sum of every process's `partial`, the same bits in all; `partial` itself may hold it.

        The order in which gloo's ring adds more than two numbers depends on where they lie in the tensor, so that a
        row's bits would depend on its batch. There the partials are exchanged and added by rank.
        """
        if self.backend == "nccl" or self.size <= 2:
            self._wait(lambda: self._sums[0].allreduce(partial))
            return partial
        parts = [torch.empty_like(partial) for _ in range(self.size)]
        self._wait(lambda: self._sums[0].allgather(parts, partial))
        result = parts[0]
        for part in parts[1:]:
            result += part
        return result

    def smallest(self, number: int) -> int:
        """The smallest of every process's `number`; none goes on before all have come here."""
        box = torch.tensor([number], dtype=torch.int64)
        self._wait(lambda: self._control[0].allreduce(box, dist.ReduceOp.MIN))
        return int(box)

    def number(self, value: int = 0) -> int:
        """Rank 0's `value`, in every process."""
        box = torch.tensor([value], dtype=torch.int64)
        self._wait(lambda: self._control[0].broadcast(box, 0))
        return int(box)

    def message(self, value: object = None) -> Any:
        """Rank 0's `value`, in every process. None is the shortest to send; raises what pickle raises before anything
        is sent."""
        if self.leads:
            body = b"" if value is None else pickle.dumps(value)
            self.number(len(body))
            if body:
                box = torch.frombuffer(bytearray(body), dtype=torch.uint8)
                self._wait(lambda: self._control[0].broadcast(box, 0))
            return value
        length = self.number()
        if not length:
            return None
        box = torch.empty(length, dtype=torch.uint8)
        self._wait(lambda: self._control[0].broadcast(box, 0))
        return pickle.load(io.BytesIO(box.numpy().tobytes()))

    def _wait(self, start: Callable[[], Any]) -> None:
        if self.broken:
            raise RunError(f"the group of {self.size} processes has ended; start it anew")
        try:
            start().wait()
        except RuntimeError as error:
            self.broken = True
            reason = self._explain() if self._explain is not None else f"{error}"
            raise RunError(f"tensor parallelism over {self.size} processes broke off: {reason}") from error

    def abort(self) -> None:
        """Make what waits for the others fail; from another thread."""
        self.broken = True
        _abort(self._control, self._sums)

    def leave(self) -> None:
        """Close the connections; the others' next message or sum fails."""
        self.broken = True
        self._finalizer()


def _abort(*links: list[Any]) -> None:
    for link in links:
        for group in link:
            if hasattr(group, "abort"):  # torch 2.6's gloo has none, and notices closed connections
                group.abort()


def _disconnect(*links: list[Any]) -> None:
    """Also at the interpreter's end: a thread of torch that still holds a tensor then would end the process badly, and
    letting go of a group waits for its threads."""
    _abort(*links)
    for link in links:
        link.clear()


def _gather(store: Store, rank: int, size: int, alive: Callable[[], None] | None) -> None:
    """Return when all processes are there; `RunError` names those that did not come in time."""
    store.set(f"here/{rank}", "1")
    limit = time.monotonic() + GATHERING
    missing = list(range(size))
    while missing := [other for other in missing if not store.check([f"here/{other}"])]:
        if alive is not None:
            alive()
        if time.monotonic() > limit:
            raise RunError(
                f"tensor parallelism over {size} processes: {', '.join(f'rank {other}' for other in missing)} did not "
                f"come within {GATHERING:.0f} s; do all processes run, and on machines that reach each other?"
            )
        time.sleep(POLL)


def _gloo(store: Store, rank: int, size: int, timeout: timedelta, hostname: str | None) -> Any:
    if hostname is None:
        return dist.ProcessGroupGloo(store, rank, size, timeout)
    gloo: Any = dist.ProcessGroupGloo  # torch's stubs lack its options
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=hostname)]
    options._timeout = timeout
    options._threads = 2
    return gloo(store, rank, size, options)


def default_backend(device: str) -> str:
    """`nccl` on CUDA where torch has it, which takes a device for each process; else `gloo`."""
    return "nccl" if torch.device(device).type == "cuda" and dist.is_nccl_available() else "gloo"


def launched() -> bool:
    """Whether a launcher such as torchrun started this process among others."""
    return dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_launched(size: int, *, backend: str) -> ParallelGroup:
    """The group of the processes that a launcher started; a program may call it several times, in all alike.

    Raises `ConfigError` where the launcher started another number than `size`.
    """
    initialized = dist.is_initialized()
    rank = dist.get_rank() if initialized else int(os.environ["RANK"])
    world = dist.get_world_size() if initialized else int(os.environ["WORLD_SIZE"])
    if world != size:
        raise ConfigError(
            f"tensor_parallel_size={size} and the launcher started {world} processes; let the two agree, or start one "
            "process, which starts the others itself"
        )
    if initialized:
        store = dist.distributed_c10d._get_default_store()
    else:
        store = next(iter(rendezvous("env://", rank, world)))[0]
    turn = store.add(f"dlm/turn/{rank}", 1)
    return ParallelGroup(PrefixStore(f"dlm/{turn}", store), rank, world, backend=backend)
