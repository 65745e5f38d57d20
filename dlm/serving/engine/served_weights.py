"""Weight updates and sleep for the served model. Every change waits for its turn in the decoder thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dlm.decoding.decoder import Decoder
from dlm.decoding.outcomes import is_out_of_memory
from dlm.errors import CheckpointError, RequestError, RunError
from dlm.models.io.loading import Checkpoint
from dlm.rl.weights.control import WEIGHTS, WeightControl
from dlm.rl.weights.partial_update import PartialUpdate
from dlm.serving.engine.decoder_thread import DecoderThread
from dlm.serving.engine.defaults import refused
from dlm.serving.engine.queued import Draining, EnginePaused
from dlm.serving.http.errors import CONFLICT, SERVER, ApiError, draining, out_of_memory, timed_out

log = logging.getLogger("dlm.serving")

Change = Callable[["ThreadControl"], None]


class ThreadControl(WeightControl):
    """Weight control for the model of a decoder thread; used only in tasks of that thread.

    Args:
        checkpoint: the model.
        thread: decodes with it.
    """

    def __init__(self, checkpoint: Checkpoint, thread: DecoderThread) -> None:
        super().__init__(checkpoint, None, thread.weight_version)
        self._thread = thread

    def _drop_decoder(self) -> None:
        if WEIGHTS in self.asleep:  # nothing was decoded since it was built, and a new one would read the weights
            return
        old = self._thread.decoder
        self._thread.decoder = Decoder(old.backbone, old.special, old.options, backend=old.backend)
        self._thread.decoder.stats = old.stats
        del old  # frees its memory now
        super()._drop_decoder()

    def check_awake(self) -> None:
        """Raise `ApiError` (409) while the weights are asleep."""
        if WEIGHTS in self.asleep:
            raise ApiError(
                409, 'the weights are asleep; POST /resume_memory_occupation with {"tags": ["weights"]} first',
                CONFLICT,
            )  # fmt: skip

    def tell_thread(self) -> None:
        """Update the thread's weight version, and whether the weights can be used."""
        self._thread.weight_version = self.weight_version
        reason = None
        if self.torn is not None:
            reason = f"the weights are a mix of two versions: {self.torn}; update them again"
        elif self.asleep:
            reason = f"asleep: {', '.join(sorted(self.asleep))}; POST /resume_memory_occupation first"
        self._thread.refuse(reason)


class ServedWeights:
    """The weights of a served model, for routes.

    Args:
        checkpoint: the model.
        thread: decodes with it.
        timeout: seconds a change may wait for its turn.
    """

    def __init__(self, checkpoint: Checkpoint, thread: DecoderThread, timeout: float) -> None:
        self.control = ThreadControl(checkpoint, thread)
        self.thread, self.timeout = thread, timeout
        self._gathering: PartialUpdate | None = None
        self._turn = asyncio.Lock()

    async def change(self, change: Change, *, abort: str | None = None, keep_pause: bool = False) -> None:
        """Run `change` while no request is in mid-generation; see `DecoderThread.exclusively`.

        Args:
            change: what to do.
            abort: reason to abort all requests first; None waits for those in progress.
            keep_pause: leave decoding paused afterwards.

        Raises `ApiError`: 400 for invalid input, 409 if not possible now, 500 for a failure, 503 while draining or if
        out of memory, 504 if it had no turn within `timeout` seconds. Nothing was changed then, except after a 500.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        turn = threading.Lock()  # taken by the task, which then runs to completion, or by the timeout

        def task() -> None:
            if not turn.acquire(blocking=False):
                return
            try:
                change(self.control)
            finally:
                self.control.tell_thread()
            if keep_pause:
                self.thread.pause()

        def settle(error: Exception | None) -> None:
            if not done.done():
                done.set_exception(error) if error else done.set_result(None)

        def told(_: Any, error: Exception | None) -> None:
            loop.call_soon_threadsafe(settle, error)

        try:
            self.thread.exclusively(task, told, abort=abort)
            await asyncio.wait({done}, timeout=self.timeout)
            if not done.done() and turn.acquire(blocking=False):
                raise timed_out(self.timeout)
            await done
        except Exception as error:
            raise explained(error) from error

    async def update_from_disk(self, folder: str, version: int | None, **how: Any) -> None:
        """Load the weights of a folder; `version` None is the next number. Raises the errors of `change`; the folder is
        checked as far as possible before any request waits or is aborted."""

        def change(control: ThreadControl) -> None:
            control.check_awake()
            control.update_weights_from_disk(folder, version=following(control, version))

        try:
            await asyncio.to_thread(self.control.check_disk, folder)
        except CheckpointError as error:
            raise explained(error) from error
        await self.change(change, **how)

    async def add(
        self, named_tensors: Iterable[tuple[str, Tensor]], *, last: bool, version: int | None = None, **how: Any
    ) -> bool:
        """Add tensors to a partial update; once the model is complete, all are written.

        Args:
            named_tensors: of the model, under one of its naming schemes.
            last: no more follow; missing tensors are then an error.
            version: of the complete weights; None is the next number.

        Returns:
            Whether the model was complete and has been updated.

        Raises:
            ApiError: as `change`. The partial update is then dropped, and the model is unchanged.
        """
        async with self._turn:
            gathering, self._gathering = self._gathering, None
            try:
                gathering = await asyncio.to_thread(self._gathered, gathering, named_tensors)
                if last:
                    gathering.check_complete()
            except CheckpointError as error:
                raise explained(error) from error
            if not gathering.complete:
                self._gathering = gathering
                return False
            tensors = gathering.tensors

            def change(control: ThreadControl) -> None:
                control.check_awake()
                control.update_weights(tensors, version=following(control, version))

            await self.change(change, **how)
            return True

    async def check(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Raise `ApiError` (400) unless such a tensor can be added next."""
        async with self._turn:
            try:
                self._gathering = await asyncio.to_thread(self._gathered, self._gathering, ())
                self._gathering.check(name, shape, dtype)
            except CheckpointError as error:
                raise explained(error) from error

    async def finish(self) -> None:
        """Raise `ApiError` (400) naming the missing tensors of a partial update, if there is one; it is dropped."""
        async with self._turn:
            gathering, self._gathering = self._gathering, None
            if gathering is not None and gathering.tensors:
                try:
                    gathering.check_complete()
                except CheckpointError as error:
                    raise explained(error) from error

    async def forget(self) -> None:
        """Drop a partial update."""
        async with self._turn:
            self._gathering = None

    @property
    def waiting(self) -> int:
        """Number of tensors received for a partial update."""
        return 0 if self._gathering is None else len(self._gathering.tensors)

    def _gathered(self, gathering: PartialUpdate | None, named_tensors: Iterable[tuple[str, Tensor]]) -> PartialUpdate:
        checkpoint = self.control.checkpoint
        found = gathering or PartialUpdate(checkpoint.family, checkpoint.backbone.config)
        for name, tensor in named_tensors:
            found.add(name, tensor)
        return found


def following(control: WeightControl, version: int | None) -> int:
    """The version after an update."""
    return control.weight_version + 1 if version is None else version


def explained(error: Exception) -> ApiError:
    """The `ApiError` for a failed change."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Draining):
        return draining()
    if isinstance(error, EnginePaused):
        return ApiError(
            409, "requests are paused in mid-generation, and their answers would mix two weight versions; POST "
            "/continue_generation first, or abort them with abort_all_requests=true",
            CONFLICT,
        )  # fmt: skip
    if isinstance(error, CheckpointError):
        return ApiError(400, str(error))
    if isinstance(error, RequestError):
        return refused(error)
    if isinstance(error, RunError):
        return ApiError(409, str(error), CONFLICT)
    if is_out_of_memory(error):
        return out_of_memory()
    log.error("changing the weights failed", exc_info=error)
    return ApiError(
        500, f"changing the weights failed ({type(error).__name__}); see the server's log, and GET /ready for whether "
        "the weights can be used", SERVER,
    )  # fmt: skip
