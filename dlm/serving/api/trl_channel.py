"""Weights from TRL's client, which sends them tensor by tensor over a process group and announces each over HTTP."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from dlm.rl.weights.communicator import BACKEND, HOST, Communicator
from dlm.serving.engine.served_weights import ServedWeights
from dlm.serving.http.errors import CONFLICT, SERVER, ApiError, timed_out

log = logging.getLogger("dlm.serving")

RANK = 0
"""The server's rank in the group; the client is the only other process."""
SIZE = 2

Result = TypeVar("Result")


class Channel:
    """The process group, and the tensors received over it in the order announced.

    Args:
        weights: updated with the received tensors.
    """

    def __init__(self, weights: ServedWeights) -> None:
        self._weights = weights
        self._group: Communicator | None = None
        self._opened = False
        self._last: asyncio.Task[None] | None = None
        self._fault: str | None = None

    async def open(self, host: str, port: int, world_size: int, backend: str | None) -> None:
        """Start waiting for the client, which joins when this returns. Raises `ApiError`: 400, 409."""
        if backend != BACKEND:
            raise ApiError(
                400, f"backend={backend!r:.40}: this server cannot join vLLM's NCCL group; in the trainer set "
                "VLLMClient.init_communicator = dlm.rl.weights.communicator.join",
                param="backend",
            )  # fmt: skip
        if world_size != SIZE:
            raise ApiError(400, f"world_size={world_size} must be {SIZE}: one server, one client", param="world_size")
        if self._opened:
            raise ApiError(409, "a group already exists; POST /close_communicator/ first", CONFLICT)
        self._opened, self._fault = True, None
        try:
            await asyncio.to_thread(check_free, host, port)  # a DNS lookup may take long
        except BaseException:
            self._opened = False
            raise
        self._follow(self._join(host, port))

    async def expect(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        """Receive a tensor, which the client sends once this has returned. Raises `ApiError`: 400, 409, 503."""
        kind = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(kind, torch.dtype):
            raise ApiError(400, f"dtype={dtype!r:.40} is unknown; write e.g. torch.bfloat16", param="dtype")
        await self._weights.check(name, shape, kind)
        if not self._opened:
            raise ApiError(409, "there is no group to receive weights over; POST /init_communicator/ first", CONFLICT)
        await self.settled()
        await self._weights.check(name, shape, kind)  # it may have arrived meanwhile
        self._follow(self._receive(name, kind, shape))

    async def settled(self) -> None:
        """Wait until all announced tensors are received, and written if the model is complete.

        Raises `ApiError`: 503 if an update failed, 504 after the timeout.
        """
        if self._last is not None:
            _, late = await asyncio.wait({self._last}, timeout=self._weights.timeout)
            if late:
                raise timed_out(self._weights.timeout)
        if self._fault is not None:
            raise ApiError(
                503, f"{self._fault}; the weights are unchanged. POST /close_communicator/ and "
                "/init_communicator/, and send all weights again",
                SERVER, code="update_failed",
            )  # fmt: skip

    async def close(self) -> None:
        """Leave the group and drop a partial update."""
        if self._last is not None:
            self._last.cancel()
        self._group, self._opened, self._last, self._fault = None, False, None, None
        await self._weights.forget()

    def _follow(self, job: Coroutine[Any, Any, None]) -> None:
        self._last = asyncio.create_task(self._remembering(job))

    async def _remembering(self, job: Coroutine[Any, Any, None]) -> None:
        try:
            await job
        except Exception as error:
            log.warning("receiving weights failed (%s)", type(error).__name__, exc_info=True)
            self._fault = f"a weight update failed: {error!s:.500}"
            await self._weights.forget()

    async def _join(self, host: str, port: int) -> None:
        self._group = await apart(lambda: Communicator(host, port, RANK, SIZE))

    async def _receive(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> None:
        group = self._group
        assert group is not None  # announcements wait for the join before them

        def receive() -> Tensor:
            tensor = torch.empty(tuple(shape), dtype=dtype, device=HOST)
            group.broadcast(tensor, SIZE - 1)
            group.barrier()
            return tensor

        await self._weights.add([(name, await apart(receive))], last=False)


def check_free(host: str, port: int) -> None:
    """Raise `ApiError` unless the address can be bound: 400 for an invalid host name, else 409."""
    try:
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
    except (TypeError, ValueError) as error:
        raise ApiError(400, f"host={host!r:.80} is not a valid host name or address ({error})", param="host") from error
    except OSError as error:
        raise ApiError(
            409, f"cannot listen on {host:.80}:{port} ({error}); choose another group_port", CONFLICT
        ) from error


async def apart(function: Callable[[], Result]) -> Result:
    """Run `function`, which waits for another process, in a daemon thread, and return its result."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Result] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not found.done():
            found.set_exception(error) if error else found.set_result(result)

    def work() -> None:
        result, fault = None, None
        try:
            result = function()
        except Exception as error:
            fault = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, fault)

    threading.Thread(target=work, name="weights", daemon=True).start()
    return await found
