"""One decoder over several processes, each with a part of the model.

Rank 0 takes the requests; every process makes the same steps. What a step decides follows from sums that have the same
bits everywhere, so the processes need to tell each other only what comes from outside: requests, seeds that were drawn,
the answers of `should_stop`, and when to step, to drop everything and to close.

    with ParallelDecoder.start(partial(load_checkpoint, folder), config, 2) as decoder:
        for completion in decoder.run(requests):
            ...
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self

import torch

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import Sparse
from dlm.decoding.options import DecoderOptions, StepReport
from dlm.decoding.outcomes import refusal_of
from dlm.decoding.request import Completion, Request
from dlm.decoding.tensor_parallel.commands import (
    FAILS,
    GOES_ON,
    STOPS,
    AddRequest,
    Cancellation,
    Command,
    StopRuleFailed,
)
from dlm.distributed.group import ParallelGroup, default_backend, join_launched, launched
from dlm.distributed.workers import Workers, cuda_devices
from dlm.errors import RequestError, RunError
from dlm.models.architecture import BackboneConfig
from dlm.models.attention import AttentionBackend
from dlm.models.devices import free_memory
from dlm.models.io.loading import Checkpoint
from dlm.models.sharding import Shard, check_divisible


class Loader(Protocol):
    """Loads a part of the model; picklable, such as a `functools.partial` of `load_checkpoint`."""

    def __call__(self, *, shard: Shard) -> Checkpoint:
        """The part, on the process's device."""


class ParallelDecoder(Decoder):
    """A process's part of the decoder; made by `start`.

    In rank 0 it is used like any `Decoder`, and closed at the end. Under a launcher the other ranks call `run` and
    `close` as rank 0 does: their `run` takes no requests of its own, yields what rank 0's yields, and ends with it.

    Args:
        group: the processes; each makes its decoder at the same time.
        checkpoint: this process's part of the model.
        options: limits, the same in all processes.
        workers: the processes that this one started.
        backend: the attention to use; None chooses by device and dtype.
    """

    def __init__(
        self,
        group: ParallelGroup,
        checkpoint: Checkpoint,
        options: DecoderOptions | None = None,
        *,
        workers: Workers | None = None,
        backend: AttentionBackend | None = None,
    ) -> None:
        self.group, self.checkpoint = group, checkpoint
        self.closed = False
        self._workers = workers
        self._stop_error: BaseException | None = None
        checkpoint.backbone.sum_with(group.total)
        super().__init__(checkpoint.backbone, checkpoint.special, options, backend=backend)

    @classmethod
    def start(
        cls,
        load: Loader,
        config: BackboneConfig,
        size: int,
        options: DecoderOptions | None = None,
        *,
        device: str = "cpu",
        collectives: str | None = None,
    ) -> Self:
        """The decoder of this process, the others started or, under torchrun, joined.

        Args:
            load: gives the part of the model for a shard; on CUDA onto the device `cuda`, which is the current one of
                each process.
            config: the whole model's architecture.
            size: processes.
            options: limits of the decoder.
            device: `cpu` or `cuda`; without a launcher rank r takes the r-th CUDA device.
            collectives: `gloo` or `nccl` for the sums; None chooses by device.

        Raises:
            ConfigError: `size` does not divide the model, or is not that of the launcher, or there are fewer devices;
                no process was started then.
            RunError: a process did not start; with its traceback.
        """
        check_divisible(config, size)
        sums = collectives or default_backend(device)
        if launched():
            if torch.device(device).type == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            joined = join_launched(size, backend=sums)
            return cls(joined, load(shard=Shard(joined.rank, size)), options)
        devices = cuda_devices(size) if torch.device(device).type == "cuda" and sums == "nccl" else None
        if devices is not None:
            torch.cuda.set_device(devices[0])
        workers = Workers(size, partial(_serve, load, options), backend=sums, devices=devices)
        group: ParallelGroup | None = None
        try:
            group = workers.group()
            return cls(group, load(shard=Shard(0, size)), options, workers=workers)
        except BaseException:
            if group is not None:
                group.leave()
            workers.end(0)
            raise

    def _arena_tokens(self) -> int:
        """As large as the process with the least room can have it; processes on a CPU share the machine's memory."""
        self.group.smallest(0)  # when all have loaded their weights
        tokens = super()._arena_tokens()
        config, device = self.backbone.config, self.backbone.device
        if self.options.arena_tokens is None and device.type == "cpu":
            slot_bytes = config.kv_values_per_token * self.backbone.dtype.itemsize
            share = free_memory(device) // 4 // slot_bytes // self.group.size
            tokens = max(config.max_positions, min(tokens, share))
        return self.group.smallest(tokens)

    # What rank 0 does and tells

    def check(self, request: Request) -> None:
        """As `Decoder.check`; also refuses what needs all heads in one process."""
        super().check(request)
        if isinstance(request.engine, Sparse) and not request.engine.head_select:
            raise RequestError(
                f"head_select=False chooses by all heads together, which lie in {self.group.size} processes; set "
                "head_select=True or tensor_parallel_size=1"
            )

    def add(self, request: Request) -> None:
        """Queue a request in all processes; `should_stop` and `watch` stay in this one. Raises `RequestError`."""
        bare = replace(request, should_stop=None, watch=None)
        try:
            self.check(request)
        except RequestError as error:
            self._tell(AddRequest(bare, False, str(error)))
            raise
        if request.params.seed is None:
            bare = replace(bare, params=replace(bare.params, seed=secrets.randbits(63)))
        rule = request.should_stop
        self._tell(AddRequest(bare, rule is not None))
        bare = replace(bare, watch=request.watch)
        super().add(bare if rule is None else replace(bare, should_stop=partial(self._ask, rule)))

    def step(self) -> tuple[list[Completion], StepReport]:
        """One forward in all processes. When it fails in one the decoder is of no more use, and is closed."""
        self._tell(None)
        try:
            done = super().step()
            if self._workers is not None:
                self._workers.check()
            return done
        except BaseException as error:
            if error is not self._stop_error:
                self._break_off()
            raise

    def step_apart(self) -> list[Completion]:
        """Not here: a step that failed in one process has left the others behind. Raises `RunError`."""
        raise RunError("a step failed in one of several processes; make a new decoder")

    def cancel(self, request_id: str) -> bool:
        """As `Decoder.cancel`, in all processes."""
        self._tell(Cancellation(request_id))
        return super().cancel(request_id)

    def drop_all(self) -> None:
        """Forget every canvas, in all processes."""
        if not self.closed and not self.group.broken:
            self._tell(Command.DROP)
        super().drop_all()

    def _tell(self, message: AddRequest | Cancellation | Command | None) -> None:
        if self.closed:
            raise RunError("the decoder is closed")
        if not self.group.leads:
            raise RunError(f"requests go to rank 0; rank {self.group.rank} follows it in run and close")
        try:
            self.group.message(message)
        except BaseException as error:
            if isinstance(error, RunError) or not isinstance(error, Exception):  # else nothing was sent
                self._break_off()
            raise

    def _ask(self, rule: Callable[[Sequence[int]], bool], tokens: Sequence[int]) -> bool:
        """The answer of `should_stop`, told to the others."""
        try:
            stops = bool(rule(tokens))
        except Exception as error:
            self._stop_error = error
            self.group.number(FAILS)
            raise
        self.group.number(STOPS if stops else GOES_ON)
        return stops

    def _break_off(self) -> None:
        """End without a word: a process is gone, or this one is in the middle of a step."""
        self.closed = True
        self.group.leave()
        if self._workers is not None:
            self._workers.end(0)

    # What the others do

    def _hear_answer(self, tokens: Sequence[int]) -> bool:
        answer = self.group.number()
        if answer == FAILS:
            raise StopRuleFailed
        return answer == STOPS

    def _follow(self, on_step: Callable[[StepReport], None] | None = None) -> Iterator[Completion]:
        """Do as rank 0 says until it drops everything, as it does at the end of each run, or closes."""
        while True:
            message = self.group.message()
            if message is None:
                try:
                    finished, report = super().step()
                except StopRuleFailed:
                    continue
                if on_step is not None:
                    on_step(report)
                yield from finished
            elif isinstance(message, AddRequest):
                if message.refusal is not None:
                    yield refusal_of(message.request, RequestError(message.refusal))
                    continue
                rule = self._hear_answer if message.stops else None
                super().add(replace(message.request, should_stop=rule))
            elif isinstance(message, Cancellation):
                super().cancel(message.request_id)
            else:
                super().drop_all()
                self.closed = message is Command.CLOSE
                return

    def serve(self) -> None:
        """In a rank other than 0: follow it until it closes."""
        while not self.closed:
            for _ in self._follow():
                pass
        self.group.leave()

    def run(
        self, requests: Iterable[Request], *, on_step: Callable[[StepReport], None] | None = None
    ) -> Iterator[Completion]:
        """As `Decoder.run`; in a rank other than 0 the completions of rank 0's run, whatever `requests` are."""
        if self.group.leads:
            yield from super().run(requests, on_step=on_step)
            return
        following = self._follow(on_step)
        try:
            yield from following
        finally:
            for _ in following:  # the caller may have enough; rank 0 needs this process until its own run ends
                pass

    def close(self) -> None:
        """End the processes that were started; in a rank other than 0 follow rank 0 until it closes. Never fails when
        called again."""
        if self.closed or not self.group.leads:
            self.serve()
            return
        super().drop_all()
        with suppress(RunError):  # a process that is gone has ended already, and `_tell` ended the others
            self._tell(Command.CLOSE)
        self.closed = True
        if self._workers is not None:
            self._workers.end()
        self.group.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(load: Loader, options: DecoderOptions | None, group: ParallelGroup) -> None:
    """The life of a worker that was started for a decoder."""
    ParallelDecoder(group, load(shard=Shard(group.rank, group.size)), options).serve()
