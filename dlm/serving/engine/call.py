"""The event loop's side of decoding one HTTP request: requests go to the decoder thread, results come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from dlm.decoding.request import Completion, Progress, Request
from dlm.serving.engine.decoder_thread import DecoderThread
from dlm.serving.engine.queued import Draining, QueueFull, Unavailable
from dlm.serving.http.errors import (
    SERVER,
    ApiError,
    aborted,
    draining,
    not_finite,
    out_of_memory,
    overloaded,
    timed_out,
    unavailable,
)

RETRY_AFTER = 1
"""Seconds after which a rejected client may retry."""

News = Progress | Completion


class Call:
    """Decoder requests that one client waits for; leaving the context cancels those that are not done.

        with Call(thread, requests, timeout=300.0) as call:
            async for index, news in call.news():
                ...

    Args:
        thread: decodes them.
        requests: with unique ids.
        timeout: seconds for all of them together.
        watched: report progress too.

    Attributes:
        weight_versions: by request index, version of the weights it was decoded with.
    """

    def __init__(
        self, thread: DecoderThread, requests: Sequence[Request], *, timeout: float, watched: bool = False
    ) -> None:
        self._thread, self._timeout = thread, timeout
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        self.weight_versions: dict[int, int] = {}
        self._left = {request.id: request.params.n for request in requests}
        self._requests = [
            replace(one, watch=partial(self._tell, index)) if watched else one for index, one in enumerate(requests)
        ]

    def _tell(self, index: int, news: News) -> None:
        """Called in the decoder thread."""
        if isinstance(news, Completion):
            self.weight_versions[index] = self._thread.weight_version
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, news))

    def submit(self) -> None:
        """Submit the requests, all or none. Raises `ApiError`: 429 if the queue is full, 503 while draining or while
        decoding is unavailable."""
        try:
            with ExitStack() as submitted:
                for index, request in enumerate(self._requests):
                    self._thread.submit(request, partial(self._tell, index))
                    submitted.callback(self._thread.cancel, request.id)
                submitted.pop_all()
        except Draining:
            raise draining() from None
        except Unavailable as error:
            raise unavailable(str(error)) from None
        except QueueFull:
            waiting = self._thread.load().waiting
            raise overloaded(f"{waiting} sequences are waiting; try again later", RETRY_AFTER) from None

    def cancel(self) -> None:
        """Cancel what is not done; its batch slots are free before the next forward."""
        for name in self._left:
            self._thread.cancel(name)

    def __enter__(self) -> Self:
        self.submit()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def news(self) -> AsyncIterator[tuple[int, News]]:
        """Yield the request's index and its progress or completion, until every sample of every request is done.

        Raises `ApiError`: 504 after the timeout, or that of `failure_of` if a request failed.
        """
        until = self._loop.time() + self._timeout
        while self._left:
            try:
                async with asyncio.timeout_at(until):
                    index, news = await self._queue.get()
            except TimeoutError:
                raise timed_out(self._timeout) from None
            if isinstance(news, Completion):
                if news.error is not None:
                    self._left.pop(news.request_id)
                    raise failure_of(news)
                self._left[news.request_id] -= 1
                if not self._left[news.request_id]:
                    del self._left[news.request_id]
            yield index, news

    async def completions(self) -> list[list[Completion]]:
        """The samples of each request, in order. Raises the errors of `news`."""
        found: list[list[Completion]] = [[] for _ in self._requests]
        async for index, news in self.news():
            if isinstance(news, Completion):
                found[index].append(news)
        return [sorted(samples, key=lambda one: one.sample) for samples in found]


def failure_of(completion: Completion) -> ApiError:
    """The error a client gets for a completion with `error`; details are in the log."""
    if completion.fault == "refused":
        return ApiError(400, str(completion.error))
    if completion.fault == "draining":
        return draining()
    if completion.fault == "unavailable":
        return unavailable(str(completion.error))
    if completion.fault == "aborted":
        return aborted(str(completion.error))
    if completion.fault == "not_finite":
        return not_finite(str(completion.error))
    name = str(completion.error).partition(":")[0]
    if completion.fault == "out_of_memory":
        return out_of_memory()
    return ApiError(500, f"this request failed in the decoder ({name}); see the server's log", SERVER)
