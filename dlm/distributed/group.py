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
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dlm.errors import ConfigError, RunError

FOREVER = timedelta(days=365)
SUM_TIMEOUT = timedelta(minutes=10)
"""As NCCL's own."""
GATHERING = 180.0
"""Seconds for all processes to start and find each other; weights are loaded later."""
POLL = 0.02
INTERFACE = "GLOO_SOCKET_IFNAME"
"""Names the interface at which torch's gloo listens."""


class ParallelGroup:
    """One process's membership.

    Args:
        store: where the processes find each other; its keys belong to this group alone.
        rank, size: which of how many processes this is.
        backend: of the sums: `gloo` or `nccl`.
        loopback: all processes are on this machine, and gloo listens on its loopback interface; otherwise on that of
            the machine's name, or of GLOO_SOCKET_IFNAME.
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
        loopback: bool = False,
        explain: Callable[[], str] | None = None,
        alive: Callable[[], None] | None = None,
    ) -> None:
        self.rank, self.size, self.backend = rank, size, backend
        self.broken = False
        self._explain = explain
        _gather(store, rank, size, alive)
        control = _gloo(PrefixStore("control", store), rank, size, FOREVER, loopback)
        sums = PrefixStore("sums", store)
        if backend == "nccl":
            summing: Any = dist.ProcessGroupNCCL(sums, rank, size, dist.ProcessGroupNCCL.Options())
        else:
            summing = _gloo(sums, rank, size, SUM_TIMEOUT, loopback)
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


def _gloo(store: Store, rank: int, size: int, timeout: timedelta, loopback: bool) -> Any:
    with _loopback_interface() if loopback else nullcontext():
        return dist.ProcessGroupGloo(store, rank, size, timeout)


@contextmanager
def _loopback_interface() -> Iterator[None]:
    """Have gloo listen on the loopback interface: the address of the machine's name may lead elsewhere."""
    name = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    before = os.environ.get(INTERFACE)
    os.environ[INTERFACE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[INTERFACE]
        else:
            os.environ[INTERFACE] = before


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
    store = _new_store(rank) if initialized else next(iter(rendezvous("env://", rank, world)))[0]
    turn = store.add(f"dlm/turn/{rank}", 1)
    return ParallelGroup(PrefixStore(f"dlm/{turn}", store), rank, world, backend=backend)


def _new_store(rank: int) -> Store:
    """A store of the default group's processes, kept by rank 0 on a port that the system chooses."""
    host = os.environ.get("MASTER_ADDR", socket.gethostname())
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    port: list[Any] = [None if store is None else store.port]
    dist.broadcast_object_list(port, 0)
    return store or dist.TCPStore(host, port[0], is_master=False, wait_for_workers=False)
