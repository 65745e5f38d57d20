"""The one thread that owns the decoder. Requests join and leave between two steps; nothing here knows HTTP or text."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from dlm.decoding.decoder import Decoder
from dlm.decoding.options import StepReport
from dlm.decoding.request import Completion
from dlm.errors import RequestError
from dlm.serving.engine.desk import Desk
from dlm.serving.engine.tickets import Aborted, EnginePaused, EngineStats, QueuedRequest, Unavailable

log = logging.getLogger("dlm.serving")


class DecoderThread(Desk):
    """Runs a decoder.

    Args:
        decoder: belongs to the thread once it is started.
        max_wait_time: seconds that the oldest waiting sequence waits for others while the batch is not full.
        queue_size: sequences that may wait.
        on_step: hears every forward, in the thread.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_wait_time: float = 0.0,
        queue_size: int = 1024,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        super().__init__(decoder, queue_size)
        self.max_wait_time, self._on_step = max_wait_time, on_step
        self._tickets: dict[str, QueuedRequest] = {}
        self._thread = threading.Thread(target=self._live, name="decoder", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

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

    def refuse(self, reason: str | None) -> None:
        """From a task: nothing can be decoded until this is called with None; those that wait are told so."""
        with self._condition:
            self._refusal = reason
        if reason is not None:
            self._tell_all(Unavailable(reason), "unavailable")

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
            self._tell_load()
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
            self._tell_load()

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

    def _add(self, ticket: QueuedRequest) -> None:
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
                raise EnginePaused
            result = task()
        except Exception as error:
            fault = error
        self._hear(on_done, result, fault)

    def _tell_load(self) -> None:
        decoder = self.decoder
        running = len(decoder.scheduler.running)
        with self._condition:
            self._load = EngineStats(
                waiting=sum(ticket.left for ticket in self._tickets.values()) - running,
                running=running,
                steps=decoder.stats.num_steps,
                canvases=decoder.stats.num_canvases,
                arena_used=decoder.arena.ranges.num_taken,
                arena_slots=decoder.arena.ranges.capacity,
            )
