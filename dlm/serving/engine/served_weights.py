"""New weights and sleep for the model that is being served. Every change waits for its turn in the decoder's thread."""

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
from dlm.serving.engine.tickets import Draining, EnginePaused
from dlm.serving.http.errors import CONFLICT, SERVER, ApiError, draining, out_of_memory, timed_out

log = logging.getLogger("dlm.serving")

Change = Callable[["ThreadControl"], None]


class ThreadControl(WeightControl):
    """What can be changed of the model of a decoder's thread; used in tasks of that thread alone.

    Args:
        checkpoint: the model.
        thread: decodes with it.
    """

    def __init__(self, checkpoint: Checkpoint, thread: DecoderThread) -> None:
        super().__init__(checkpoint, None, thread.weight_version)
        self._thread = thread

    def _drop_decoder(self) -> None:
        if WEIGHTS in self.asleep:  # nothing was decoded since it was made, and a new one would look at the weights
            return
        old = self._thread.decoder
        self._thread.decoder = Decoder(old.backbone, old.special, old.options, backend=old.backend)
        self._thread.decoder.stats = old.stats
        del old  # its memory is given back now
        super()._drop_decoder()

    def check_awake(self) -> None:
        """Raise `ApiError` (409) while the weights sleep."""
        if WEIGHTS in self.asleep:
            raise ApiError(
                409, 'the weights sleep; POST /resume_memory_occupation with {"tags": ["weights"]} before an update',
                CONFLICT,
            )  # fmt: skip

    def tell_thread(self) -> None:
        """Let the thread know of the weights that it has now, and whether they can be used."""
        self._thread.weight_version = self.weight_version
        reason = None
        if self.torn is not None:
            reason = f"the weights are a mixture, since {self.torn}; update them again"
        elif self.asleep:
            reason = f"asleep: {', '.join(sorted(self.asleep))}; POST /resume_memory_occupation first"
        self._thread.refuse(reason)


class ServedWeights:
    """The weights of a served model, for routes.

    Args:
        checkpoint: the model.
        thread: decodes with it.
        timeout: seconds that a change may wait for its turn.
    """

    def __init__(self, checkpoint: Checkpoint, thread: DecoderThread, timeout: float) -> None:
        self.control = ThreadControl(checkpoint, thread)
        self.thread, self.timeout = thread, timeout
        self._gathering: PartialUpdate | None = None
        self._turn = asyncio.Lock()

    async def change(self, change: Change, *, abort: str | None = None, keep_pause: bool = False) -> None:
        """Have something changed once nothing is in mid-generation, as `DecoderThread.exclusively` says.

        Args:
            change: what to do.
            abort: why all requests are given up first; None waits for those that have begun.
            keep_pause: nothing is decoded afterwards until somebody says so.

        Raises `ApiError`: 400 for what cannot be taken, 409 where it cannot be done now, 500 for what failed, 503 while
        draining or without memory, 504 when it had no turn within `timeout` seconds. Then nothing
        was changed, but for a 500.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        turn = threading.Lock()  # whoever takes it first: the task, which then runs to its end, or the timeout

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
        """Take the weights of a folder; `version` None is the next number. Raises as `change`; what can be seen of a
        folder that cannot be taken is looked for before anything waits for it or is given up for it."""

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
        """Tensors of an update that comes a few at a time; once the model is complete all are written.

        Args:
            named_tensors: of the model, under one of its namings.
            last: no others come; what is missing then is an error.
            version: of the complete weights; None is the next number.

        Returns:
            Whether the model was complete, and has been updated.

        Raises:
            ApiError: as `change`. What has come is forgotten then, and the model is as it was.
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
        """Raise `ApiError` (400) that names what is missing where an update has begun; it is forgotten then."""
        async with self._turn:
            gathering, self._gathering = self._gathering, None
            if gathering is not None and gathering.tensors:
                try:
                    gathering.check_complete()
                except CheckpointError as error:
                    raise explained(error) from error

    async def forget(self) -> None:
        """Let go of an update that is not complete."""
        async with self._turn:
            self._gathering = None

    @property
    def waiting(self) -> int:
        """Tensors that have come of an update that is not complete."""
        return 0 if self._gathering is None else len(self._gathering.tensors)

    def _gathered(self, gathering: PartialUpdate | None, named_tensors: Iterable[tuple[str, Tensor]]) -> PartialUpdate:
        checkpoint = self.control.checkpoint
        found = gathering or PartialUpdate(checkpoint.family, checkpoint.backbone.config)
        for name, tensor in named_tensors:
            found.add(name, tensor)
        return found


def following(control: WeightControl, version: int | None) -> int:
    """The version that an update makes."""
    return control.weight_version + 1 if version is None else version


def explained(error: Exception) -> ApiError:
    """What went wrong with a change, as an answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Draining):
        return draining()
    if isinstance(error, EnginePaused):
        return ApiError(
            409, "requests stand still in mid-generation, and their answers would be of two weights; POST "
            "/continue_generation first, or give them up with abort_all_requests=true",
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
    log.error("the weights could not be changed", exc_info=error)
    return ApiError(
        500, f"this failed ({type(error).__name__}); the server's log says why, and GET /ready whether the weights can "
        "be used", SERVER,
    )  # fmt: skip
