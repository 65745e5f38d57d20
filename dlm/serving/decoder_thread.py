"""The one thread that owns the decoder. Requests join and leave between two steps; nothing here knows HTTP or text.

Other threads call `submit`, `cancel`, `work`, `exclusively`, `pause`, `resume`, `load` and `drain`; each but the last
returns at once.
"""

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
from dlm.serving.tickets import (
    Aborted,
    Draining,
    Load,
    OnDone,
    OnResult,
    QueueFull,
    Standstill,
    Ticket,
    Unavailable,
    Work,
)

log = logging.getLogger("dlm.serving")


class DecoderThread:
    """Runs a decoder.

    Args:
        decoder: belongs to the thread once it is started.
        max_wait_time: seconds that the oldest waiting sequence waits for others while the batch is not full.
        queue_size: sequences that may wait.
        on_step: hears every forward, in the thread.

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
        self.decoder = decoder
        self.weight_version = 0
        self.max_wait_time, self.queue_size = max_wait_time, queue_size
        self._on_step = on_step
        self._condition = threading.Condition()
        self._arrived: deque[Ticket] = deque()
        self._cancelled: list[str] = []
        self._work: deque[Work] = deque()
        self._tasks: deque[tuple[Callable[[], Any], OnResult]] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._num_arrived = 0
        self._ending = self._abandoned = self._paused = False
        self._abort: str | None = None
        self._refusal: str | None = None
        self._sizes: Counter[int] = Counter()
        self._load = Load(arena_slots=decoder.arena.ranges.capacity)
        self._thread = threading.Thread(target=self._live, name="decoder", daemon=True)

    # From other threads

    def check(self, request: Request) -> None:
        """Raise `RequestError` when the request can never be decoded here."""
        self.decoder.check(request)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

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
            self._arrived.append(Ticket(request, on_done, time.monotonic(), count))
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
            self._work.append(Work(slices, on_done))
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
            if self._ending or not self._thread.is_alive():
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

    def refuse(self, reason: str | None) -> None:
        """From a task: nothing can be decoded until this is called with None; those that wait are told so."""
        with self._condition:
            self._refusal = reason
        if reason is not None:
            self._tell_all(Unavailable(reason), "unavailable")

    def _check_open(self) -> None:
        if self._ending or not self._thread.is_alive():
            raise Draining
        if self._refusal is not None:
            raise Unavailable(self._refusal)

    def load(self) -> Load:
        """How busy it is now."""
        with self._condition:
            now = self._load
            return Load(
                waiting=now.waiting + self._num_arrived,
                running=now.running,
                steps=now.steps,
                canvases=now.canvases,
                sizes=dict(self._sizes),
                arena_used=now.arena_used,
                arena_slots=now.arena_slots,
                alive=self._thread.is_alive(),
                refusal=self._refusal,
            )

    def drain(self, seconds: float) -> bool:
        """Take no more, finish what is here within `seconds`, and end; whether all was finished. Blocks."""
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

    # In the thread

    def _live(self) -> None:
        try:
            while self._wait():
                if self._abandoned:
                    self._give_up("the server is shutting down", "draining")
                    return
                self._give_up_aborted()
                self._do_task()
                self._take_in()
                if self.decoder.has_work and not self._held:
                    self._step()
                self._do_work()
                self._tell_load()
        except Exception as error:
            log.critical("the decoder cannot go on", exc_info=True)
            self._give_up(f"the decoder cannot go on: {type(error).__name__}", "failed")

    @property
    def _held(self) -> bool:
        """Whether nothing is computed; a pause does not outlive the server's wish to end."""
        return self._paused and not self._ending

    def _give_up(self, message: str, fault: str) -> None:
        """Tell everybody who waits. Whoever looks at `load().alive` ends the process."""
        with self._condition:
            self._ending = True
            tasks = list(self._tasks)
        self._tell_all(RuntimeError(message), fault)
        for _, on_done in tasks:
            self._hear(on_done, None, RuntimeError(message))

    def _give_up_aborted(self) -> None:
        with self._condition:
            reason, self._abort = self._abort, None
        if reason is not None:
            for name in self._tickets:
                self.decoder.cancel(name)
            self._tell_all(Aborted(reason), "aborted")

    def _tell_all(self, error: Exception, fault: str) -> None:
        """Forget all requests and all other work, and tell those who wait for it why."""
        with self._condition:
            left = [*self._tickets.values(), *self._arrived]
            work = list(self._work)
            self._tickets.clear()
            self._arrived.clear()
            self._work.clear()
            self._num_arrived = 0
        for ticket in left:
            ids = ticket.request.prompt_ids
            self._hear(ticket.on_done, Completion(ticket.request.id, 0, 0, ids, error=str(error), fault=fault))
        for one in work:
            self._hear(one.on_done, None, error)

    @staticmethod
    def _hear(listener: Callable[..., None], *news: Any) -> None:
        """Tell a listener; one that is gone (its event loop was closed) harms nobody."""
        try:
            listener(*news)
        except Exception:
            log.warning("nobody hears a result any more", exc_info=True)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when it is over."""
        with self._condition:
            while True:
                if self._abandoned or self._tasks or self._cancelled or self._abort is not None:
                    return True
                if not self._held and (self.decoder.has_work or self._work):
                    return True
                if self._arrived and not self._held:
                    patience = self._patience()
                    if patience <= 0:
                        return True
                    self._condition.wait(patience)
                elif self._ending:
                    return False
                else:
                    self._condition.wait()

    def _patience(self) -> float:
        """Seconds that what has arrived still waits for more."""
        running = len(self.decoder.scheduler.running)
        if self._ending or self._num_arrived + running >= self.decoder.options.max_num_seqs:
            return 0.0
        return self._arrived[0].arrived + self.max_wait_time - time.monotonic()

    def _hold_back(self) -> None:
        """Requests wait again that were handed to the decoder and have not begun."""
        begun = {canvas.request.id for canvas in self.decoder.scheduler.running}
        back = [
            ticket
            for name, ticket in self._tickets.items()
            if name not in begun and ticket.left == ticket.request.params.n
        ]
        for ticket in back:
            self.decoder.cancel(ticket.request.id)
            del self._tickets[ticket.request.id]
        with self._condition:
            self._arrived.extendleft(reversed(back))
            self._num_arrived += sum(ticket.left for ticket in back)

    def _take_in(self) -> None:
        """Hand what has arrived to the decoder, and take back what was cancelled."""
        with self._condition:
            ready = bool(self._arrived) and not self._held and not self._tasks and self._patience() <= 0
            arrived = list(self._arrived) if ready else []
            if ready:
                self._arrived.clear()
                self._num_arrived = 0
            cancelled, self._cancelled = set(self._cancelled), []
            if cancelled and not ready:
                kept = [ticket for ticket in self._arrived if ticket.request.id not in cancelled]
                self._arrived = deque(kept)
                self._num_arrived = sum(ticket.left for ticket in kept)
        for ticket in arrived:
            if ticket.request.id not in cancelled:
                self._add(ticket)
        for name in cancelled:
            if self._tickets.pop(name, None) is not None:
                self.decoder.cancel(name)
        self._tell_load()

    def _add(self, ticket: Ticket) -> None:
        self._tickets[ticket.request.id] = ticket
        try:
            self.decoder.add(ticket.request)
        except RequestError as error:
            request = ticket.request
            self._deliver(Completion(request.id, 0, 0, request.prompt_ids, error=str(error), fault="refused"))

    def _step(self) -> None:
        try:
            finished, report = self.decoder.step()
        except Exception as error:
            log.warning("a forward failed (%s); its requests go on one by one", type(error).__name__, exc_info=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            finished = self.decoder.step_apart()
        else:
            with self._condition:
                self._sizes[report.num_canvases] += 1
            if self._on_step is not None:
                self._on_step(report)
        self._tell_load()
        for completion in finished:
            self._deliver(completion)

    def _deliver(self, completion: Completion) -> None:
        ticket = self._tickets.get(completion.request_id)
        if ticket is None:
            return
        ticket.left -= 1
        if ticket.left == 0 or completion.error is not None:
            del self._tickets[completion.request_id]
        self._hear(ticket.on_done, completion)

    def _do_work(self) -> None:
        """One slice of the oldest piece of other work; while a task waits, only of one that has begun."""
        with self._condition:
            if not self._work or self._held or (self._tasks and not self._work[0].begun):
                return
            work = self._work[0]
        work.begun = True
        result: Any = None
        try:
            result = next(work.slices)
        except Exception as error:
            if not isinstance(error, StopIteration):  # it ended without a result: nobody wants it any more
                log.warning("a slice of other work failed (%s)", type(error).__name__, exc_info=True)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            self._end_work()
            self._hear(work.on_done, None, error)
        else:
            if result is not None:
                self._end_work()
                self._hear(work.on_done, result, None)

    def _end_work(self) -> None:
        with self._condition:
            if self._work:
                self._work.popleft()

    def _do_task(self) -> None:
        """The oldest task, once nothing is in mid-generation."""
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
                raise Standstill
            result = task()
        except Exception as error:
            fault = error
        self._hear(on_done, result, fault)

    def _tell_load(self) -> None:
        decoder = self.decoder
        running = len(decoder.scheduler.running)
        with self._condition:
            self._load = Load(
                waiting=sum(ticket.left for ticket in self._tickets.values()) - running,
                running=running,
                steps=decoder.stats.num_steps,
                canvases=decoder.stats.num_canvases,
                arena_used=decoder.arena.ranges.num_taken,
                arena_slots=decoder.arena.ranges.capacity,
            )
