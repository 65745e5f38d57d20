"""Client disconnects: the work for a client that left is cancelled at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from dlm.serving.engine.call import Call

Result = TypeVar("Result")

PING = 15
"""Seconds of silence after which a stream sends a keep-alive comment."""


class ClientGone(Exception):
    """The client closed its connection; no answer can be sent."""


async def until_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`; if the client disconnects first, cancels `work` and raises `ClientGone`."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError):
                    await one


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


class EventStream(EventSourceResponse):
    """Server-sent events of one call, which is cancelled when the stream ends for any reason.

    Args:
        pieces: the data of each event.
        call: the call that they report.
    """

    def __init__(self, pieces: AsyncIterator[str], call: Call) -> None:
        super().__init__(
            pieces,
            ping=PING,
            sep="\n",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.cancel()
