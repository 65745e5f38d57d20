"""Where other threads hand in what the decoder's thread is to do. Each call returns at once."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from dlm.decoding.decoder import Decoder
from dlm.decoding.request import Request
from dlm.serving.engine.tickets import (
    Draining,
    EngineStats,
    EngineTask,
    OnDone,
    OnResult,
    QueuedRequest,
    QueueFull,
    Unavailable,
)


class Desk(ABC):
    """What has been handed in and not been begun, and the wishes that hold for all of it.

    Args:
        decoder: what is handed in is for it.
        queue_size: sequences that may wait.

    Attributes:
        decoder: a task may put another of the same model in its place.
        weight_version: of the weights that it decodes with; changed by tasks alone, so that all samples of a request
            have one.
    """

    def __init__(self, decoder: Decoder, queue_size: int) -> None:
        self.decoder, self.queue_size = decoder, queue_size
        self.weight_version = 0
        self._condition = threading.Condition()
        self._arrived: deque[QueuedRequest] = deque()
        self._num_arrived = 0
        self._cancelled: list[str] = []
        self._work: deque[EngineTask] = deque()
        self._tasks: deque[tuple[Callable[[], Any], OnResult]] = deque()
        self._ending = self._abandoned = self._paused = False
        self._abort: str | None = None
        self._refusal: str | None = None
        self._sizes: Counter[int] = Counter()
        self._load = EngineStats(arena_slots=decoder.arena.ranges.capacity)

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether what is handed in will be looked at."""

    def check(self, request: Request) -> None:
        """Raise `RequestError` when the request can never be decoded here."""
        self.decoder.check(request)

    def submit(self, request: Request, on_done: OnDone) -> None:
        """Queue a request.

        Raises:
            QueueFull: more than `queue_size` sequences would wait for a place.
            Draining: `drain` was called, or the thread has ended.
            Unavailable: nothing is decoded now.
        """
        count = request.params.n
        with self._condition:
            self._check_open()
            free = max(0, self.decoder.options.max_num_seqs - self._load.running)
            if self._num_arrived + self._load.waiting + count > self.queue_size + free:
                raise QueueFull
            self._num_arrived += count
            self._arrived.append(QueuedRequest(request, on_done, time.monotonic(), count))
            self._condition.notify()

    def cancel(self, request_id: str) -> None:
        """Forget a request before the next step; nobody hears of it again."""
        with self._condition:
            self._cancelled.append(request_id)
            self._condition.notify()

    def work(self, slices: Iterator[Any], on_done: OnResult) -> None:
        """Have something else computed with the model, a slice between two steps.

        Args:
            slices: each `next` computes one and gives None, the last one the result.
            on_done: hears the result, or the exception that it raised, in the decoder's thread.

        Raises `Draining`, `QueueFull` and `Unavailable`.
        """
        with self._condition:
            self._check_open()
            if len(self._work) >= self.queue_size:
                raise QueueFull
            self._work.append(EngineTask(slices, on_done))
            self._condition.notify()

    def exclusively(self, task: Callable[[], Any], on_done: OnResult, *, abort: str | None = None) -> None:
        """Have something done in the decoder's thread while no request is in mid-generation.

        Requests that have begun are finished first, all their samples; the others wait until the task is done.

        Args:
            task: may change the model.
            on_done: hears its result, or what it raised; `Standstill` where requests that have begun are paused.
            abort: why all requests are given up that are here now, which are then not waited for; None gives up none.

        Raises `Draining`.
        """
        with self._condition:
            if self._ending or not self.alive:
                raise Draining
            self._abort = abort or self._abort
            self._tasks.append((task, on_done))
            self._condition.notify()

    def pause(self) -> None:
        """Compute nothing until `resume`: what has begun stands still and then goes on, what comes waits."""
        with self._condition:
            self._paused = True

    def resume(self) -> None:
        """Undo `pause`."""
        with self._condition:
            self._paused = False
            self._condition.notify()

    def _check_open(self) -> None:
        if self._ending or not self.alive:
            raise Draining
        if self._refusal is not None:
            raise Unavailable(self._refusal)

    def load(self) -> EngineStats:
        """How busy it is now."""
        with self._condition:
            now = self._load
            return EngineStats(
                waiting=now.waiting + self._num_arrived,
                running=now.running,
                steps=now.steps,
                canvases=now.canvases,
                sizes=dict(self._sizes),
                arena_used=now.arena_used,
                arena_slots=now.arena_slots,
                alive=self.alive,
                refusal=self._refusal,
            )
