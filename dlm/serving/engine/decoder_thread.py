"""The one thread that owns the decoder. Requests join and leave between steps. Knows neither HTTP nor text."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dlm.decoding.decoder import Decoder
from dlm.decoding.options import StepReport
from dlm.decoding.request import Completion, Request
from dlm.errors import RequestError
from dlm.serving.engine.queued import (
    Aborted,
    Draining,
    EnginePaused,
    EngineStats,
    EngineTask,
    OnDone,
    OnResult,
    QueuedRequest,
    QueueFull,
    Unavailable,
)

log = logging.getLogger("dlm.serving")


class DecoderThread:
    """Runs a decoder. What is submitted from other threads waits here until the next step; each call returns at once.

    Args:
        decoder: belongs to the thread once it is started.
        max_wait_time: seconds that the oldest waiting sequence waits for others while the batch is not full.
        queue_size: sequences that may wait.
        on_step: called after every forward, in the thread.

    Attributes:
        decoder: a task may put another of the same model in its place.
        weight_version: of the weights that it decodes with; changed by tasks alone, so that all samples of a request
            have one.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_wait_time: float = 0.0,
        queue_size: int = 1024,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.decoder, self.queue_size = decoder, queue_size
        self.max_wait_time, self._on_step = max_wait_time, on_step
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
        self._requests: dict[str, QueuedRequest] = {}
        self._thread = threading.Thread(target=self._live, name="decoder", daemon=True)

    def start(self) -> None:
        """Start the thread; call once."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def drain(self, seconds: float) -> bool:
        """Refuse new requests, finish current ones within `seconds`, and end; returns whether all finished. Blocks."""
        with self._condition:
            self._ending = True
            self._condition.notify()
        self._thread.join(seconds)
        finished = not self._thread.is_alive()
        if not finished:
            with self._condition:
                self._abandoned = True
                self._condition.notify()
            self._thread.join(10.0)
        return finished

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
        """Drop a request before the next step; its `on_done` is not called again."""
        with self._condition:
            self._cancelled.append(request_id)
            self._condition.notify()

    def work(self, slices: Iterator[Any], on_done: OnResult) -> None:
        """Compute something else with the model, a slice between steps.

        Args:
            slices: each `next` computes one and gives None, the last one the result.
            on_done: called with the result or the exception, in the decoder's thread.

        Raises `Draining`, `QueueFull` and `Unavailable`.
        """
        with self._condition:
            self._check_open()
            if len(self._work) >= self.queue_size:
                raise QueueFull
            self._work.append(EngineTask(slices, on_done))
            self._condition.notify()

    def exclusively(self, task: Callable[[], Any], on_done: OnResult, *, abort: str | None = None) -> None:
        """Run a task in the decoder's thread while no request is in mid-generation.

        Requests that have begun are finished first, all their samples; the others wait until the task is done.

        Args:
            task: may change the model.
            on_done: called with its result or exception; `EnginePaused` if requests that have begun are paused.
            abort: reason for aborting all current requests instead of waiting for them; None waits.

        Raises `Draining`.
        """
        with self._condition:
            if self._ending or not self.alive:
                raise Draining
            self._abort = abort or self._abort
            self._tasks.append((task, on_done))
            self._condition.notify()

    def pause(self) -> None:
        """Compute nothing until `resume`: running requests freeze and later continue, new ones wait."""
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

    # In the thread

    def _live(self) -> None:
        try:
            while self._wait():
                if self._abandoned:
                    self._shut_down("the server is shutting down", "draining")
                    return
                self._abort_all()
                self._do_task()
                self._take_in()
                if self.decoder.has_work and not self._held:
                    self._step()
                self._do_work()
                self._publish_stats()
        except Exception as error:
            log.critical("the decoder thread failed", exc_info=True)
            self._shut_down(f"the decoder thread failed: {type(error).__name__}", "failed")

    def refuse(self, reason: str | None) -> None:
        """Called by a task: refuse all requests, waiting ones included, until this is called with None."""
        with self._condition:
            self._refusal = reason
        if reason is not None:
            self._fail_all(Unavailable(reason), "unavailable")

    @property
    def _held(self) -> bool:
        """Whether computing is paused; a shutdown ends a pause."""
        return self._paused and not self._ending

    def _shut_down(self, message: str, fault: str) -> None:
        """Fail everything that waits. The worker, which watches `load().alive`, then ends the process."""
        with self._condition:
            self._ending = True
            tasks = list(self._tasks)
        self._fail_all(RuntimeError(message), fault)
        for _, on_done in tasks:
            self._notify(on_done, None, RuntimeError(message))

    def _abort_all(self) -> None:
        with self._condition:
            reason, self._abort = self._abort, None
        if reason is not None:
            for name in self._requests:
                self.decoder.cancel(name)
            self._fail_all(Aborted(reason), "aborted")

    def _fail_all(self, error: Exception, fault: str) -> None:
        """Drop all requests and other work, and report the reason to their callbacks."""
        with self._condition:
            left = [*self._requests.values(), *self._arrived]
            work = list(self._work)
            self._requests.clear()
            self._arrived.clear()
            self._work.clear()
            self._num_arrived = 0
            self._publish_stats()
        for queued in left:
            ids = queued.request.prompt_ids
            self._notify(queued.on_done, Completion(queued.request.id, 0, 0, ids, error=str(error), fault=fault))
        for one in work:
            self._notify(one.on_done, None, error)

    @staticmethod
    def _notify(listener: Callable[..., None], *news: Any) -> None:
        """Call a callback; a client that is gone (its event loop closed) must not stop the thread."""
        try:
            listener(*news)
        except Exception:
            log.warning("client gone; result dropped", exc_info=True)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when the thread should end."""
        with self._condition:
            while True:
                if self._abandoned or self._tasks or self._cancelled or self._abort is not None:
                    return True
                if not self._held and (self.decoder.has_work or self._work):
                    return True
                if self._arrived and not self._held:
                    left = self._wait_left()
                    if left <= 0:
                        return True
                    self._condition.wait(left)
                elif self._ending:
                    return False
                else:
                    self._condition.wait()

    def _wait_left(self) -> float:
        """Seconds that arrived requests still wait for more to join them."""
        running = len(self.decoder.scheduler.running)
        if self._ending or self._num_arrived + running >= self.decoder.options.max_num_seqs:
            return 0.0
        return self._arrived[0].arrived + self.max_wait_time - time.monotonic()

    def _hold_back(self) -> None:
        """Move requests that the decoder holds but has not begun back to the queue."""
        begun = {canvas.request.id for canvas in self.decoder.scheduler.running}
        back = [
            queued
            for name, queued in self._requests.items()
            if name not in begun and queued.left == queued.request.params.n
        ]
        for queued in back:
            self.decoder.cancel(queued.request.id)
            del self._requests[queued.request.id]
        with self._condition:
            self._arrived.extendleft(reversed(back))
            self._num_arrived += sum(queued.left for queued in back)
            self._publish_stats()

    def _take_in(self) -> None:
        """Pass arrived requests to the decoder, and drop cancelled ones."""
        with self._condition:
            ready = bool(self._arrived) and not self._held and not self._tasks and self._wait_left() <= 0
            arrived = list(self._arrived) if ready else []
            if ready:
                self._arrived.clear()
                self._num_arrived = 0
            cancelled, self._cancelled = set(self._cancelled), []
            if cancelled and not ready:
                kept = [queued for queued in self._arrived if queued.request.id not in cancelled]
                self._arrived = deque(kept)
                self._num_arrived = sum(queued.left for queued in kept)
        for queued in arrived:
            if queued.request.id not in cancelled:
                self._add(queued)
        for name in cancelled:
            if self._requests.pop(name, None) is not None:
                self.decoder.cancel(name)
        self._publish_stats()

    def _add(self, queued: QueuedRequest) -> None:
        self._requests[queued.request.id] = queued
        try:
            self.decoder.add(queued.request)
        except RequestError as error:
            request = queued.request
            self._deliver(Completion(request.id, 0, 0, request.prompt_ids, error=str(error), fault="refused"))

    def _step(self) -> None:
        try:
            finished, report = self.decoder.step()
        except Exception as error:
            log.warning("a forward failed (%s); retrying its requests one by one", type(error).__name__, exc_info=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            finished = self.decoder.step_apart()
        else:
            with self._condition:
                self._sizes[report.num_canvases] += 1
            if self._on_step is not None:
                self._on_step(report)
        self._publish_stats()
        for completion in finished:
            self._deliver(completion)

    def _deliver(self, completion: Completion) -> None:
        queued = self._requests.get(completion.request_id)
        if queued is None:
            return
        queued.left -= 1
        if queued.left == 0 or completion.error is not None:
            del self._requests[completion.request_id]
        self._notify(queued.on_done, completion)

    def _do_work(self) -> None:
        """Compute one slice of the oldest other work; while a task waits, only of work that has begun."""
        with self._condition:
            if not self._work or self._held or (self._tasks and not self._work[0].begun):
                return
            work = self._work[0]
        work.begun = True
        result: Any = None
        try:
            result = next(work.slices)
        except Exception as error:
            if not isinstance(error, StopIteration):  # it ended without a result: its client left
                log.warning("a slice of other work failed (%s)", type(error).__name__, exc_info=True)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            self._end_work()
            self._notify(work.on_done, None, error)
        else:
            if result is not None:
                self._end_work()
                self._notify(work.on_done, result, None)

    def _end_work(self) -> None:
        with self._condition:
            if self._work:
                self._work.popleft()

    def _do_task(self) -> None:
        """Run the oldest task once nothing is in mid-generation."""
        if not self._tasks:
            return
        self._hold_back()
        with self._condition:
            begun = self.decoder.has_work or any(work.begun for work in self._work)
            if begun and not self._held:
                return
            task, on_done = self._tasks.popleft()
        result, fault = None, None
        try:
            if begun:
                raise EnginePaused
            result = task()
        except Exception as error:
            fault = error
        self._notify(on_done, result, fault)

    def _publish_stats(self) -> None:
        decoder = self.decoder
        running = len(decoder.scheduler.running)
        with self._condition:
            self._load = EngineStats(
                waiting=sum(queued.left for queued in self._requests.values()) - running,
                running=running,
                steps=decoder.stats.num_steps,
                canvases=decoder.stats.num_canvases,
                arena_used=decoder.arena.ranges.num_taken,
                arena_slots=decoder.arena.ranges.capacity,
            )
