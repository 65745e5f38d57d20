"""One decoder over several processes, each with a shard of the model.

Rank 0 accepts the requests; every process runs the same steps. All decisions follow from sums with the same bits
everywhere, so rank 0 only broadcasts external input: requests, drawn seeds, results of `should_stop`, and when to step,
drop everything or close.

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
    """Loads a shard of the model; picklable, such as a `functools.partial` of `load_checkpoint`."""

    def __call__(self, *, shard: Shard) -> Checkpoint:
        """The shard, on the process's device."""


class ParallelDecoder(Decoder):
    """One process's part of the decoder; created by `start`.

    In rank 0, use it like any `Decoder` and close it at the end. Under a launcher the other ranks call `run` and
    `close` as rank 0 does: their `run` ignores its own requests, yields what rank 0's yields, and ends with it.

    Args:
        group: the processes; each creates its decoder at the same time.
        checkpoint: this process's shard of the model.
        options: limits, the same in all processes.
        workers: the processes started by this one.
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
        """Create this process's decoder, starting the other processes or, under torchrun, joining them.

        Args:
            load: loads a shard of the model; on CUDA onto the device `cuda`, the current one of each process.
            config: the whole model's architecture.
            size: number of processes.
            options: limits of the decoder.
            device: `cpu` or `cuda`; without a launcher rank r takes the r-th CUDA device.
            collectives: `gloo` or `nccl` for the sums; None chooses by device.

        Raises:
            ConfigError: `size` does not divide the model, differs from the launcher's, or exceeds the number of
                devices; no process was started.
            RunError: a process did not start; includes its traceback.
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
        """The size that fits the process with the least room; processes on a CPU share the machine's memory."""
        self.group.smallest(0)  # barrier: all have loaded their weights
        tokens = super()._arena_tokens()
        config, device = self.backbone.config, self.backbone.device
        if self.options.arena_tokens is None and device.type == "cpu":
            slot_bytes = config.kv_values_per_token * self.backbone.dtype.itemsize
            share = free_memory(device) // 4 // slot_bytes // self.group.size
            tokens = max(config.max_positions, min(tokens, share))
        return self.group.smallest(tokens)

    # Rank 0

    def check(self, request: Request) -> None:
        """As `Decoder.check`; also rejects requests that need all heads in one process."""
        super().check(request)
        if isinstance(request.engine, Sparse) and not request.engine.head_select:
            raise RequestError(
                f"head_select=False ranks by all heads together, but {self.group.size} processes share them; set "
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
        """One forward in all processes. If it fails in any of them, the decoder is unusable and is closed."""
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
        """Not supported: after a step failed in one process, the others are out of sync. Raises `RunError`."""
        raise RunError("a step failed in one of the tensor-parallel processes; create a new decoder")

    def cancel(self, request_id: str) -> bool:
        """As `Decoder.cancel`, in all processes."""
        self._tell(Cancellation(request_id))
        return super().cancel(request_id)

    def drop_all(self) -> None:
        """Drop every canvas, in all processes."""
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
        """Result of `should_stop`, broadcast to the other ranks."""
        try:
            stops = bool(rule(tokens))
        except Exception as error:
            self._stop_error = error
            self.group.number(FAILS)
            raise
        self.group.number(STOPS if stops else GOES_ON)
        return stops

    def _break_off(self) -> None:
        """Shut down without notifying the others: a process is gone, or this one is in the middle of a step."""
        self.closed = True
        self.group.leave()
        if self._workers is not None:
            self._workers.end(0)

    # Other ranks

    def _hear_answer(self, tokens: Sequence[int]) -> bool:
        answer = self.group.number()
        if answer == FAILS:
            raise StopRuleFailed
        return answer == STOPS

    def _follow(self, on_step: Callable[[StepReport], None] | None = None) -> Iterator[Completion]:
        """Follow rank 0 until it drops everything, as at the end of each run, or closes."""
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
        """In ranks other than 0: follow rank 0 until it closes."""
        while not self.closed:
            for _ in self._follow():
                pass
        self.group.leave()

    def run(
        self, requests: Iterable[Request], *, on_step: Callable[[StepReport], None] | None = None
    ) -> Iterator[Completion]:
        """As `Decoder.run`; in other ranks, yields the completions of rank 0's run and ignores `requests`."""
        if self.group.leads:
            yield from super().run(requests, on_step=on_step)
            return
        following = self._follow(on_step)
        try:
            yield from following
        finally:
            for _ in following:  # the caller may stop early; rank 0 needs this process until its own run ends
                pass

    def close(self) -> None:
        """End the started processes; in other ranks, follow rank 0 until it closes. Safe to call again."""
        if self.closed or not self.group.leads:
            self.serve()
            return
        super().drop_all()
        with suppress(RunError):  # if a process is gone, `_tell` has ended the others
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
    """Main function of a worker process started for a decoder."""
    ParallelDecoder(group, load(shard=Shard(group.rank, group.size)), options).serve()
