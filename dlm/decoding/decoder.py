"""The loop: plan, forward, select, commit. Token ids in, token ids out; knows no text, no Hydra, no Lightning, no HTTP.

    decoder = Decoder(backbone, special, DecoderOptions(max_num_seqs=32))
    for completion in decoder.run(requests):
        ...

The windows of all canvases in a step form one packed batch and one model call. On a CPU a request's result does not
depend on what it is batched with (`dlm.models.arithmetic`); on a GPU near-ties of its logits may resolve differently.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dlm.decoding import ending
from dlm.decoding.canvas import Canvas
from dlm.decoding.cuda.graphs import Graphs, Recorder, choose_recorder
from dlm.decoding.engines import soft_inputs as smoothing
from dlm.decoding.expansion import grow
from dlm.decoding.kv.arena import Arena
from dlm.decoding.kv.sharing import PromptSharing
from dlm.decoding.options import DecoderOptions, DecoderStats, StepReport
from dlm.decoding.outcomes import completion_of, failure_of, not_finite, progress_of, refusal_of
from dlm.decoding.packing import Batch
from dlm.decoding.request import Completion, Request
from dlm.decoding.scheduler import Scheduler
from dlm.decoding.scoring.proposals import rows_within
from dlm.decoding.scoring.selection import Selection, Selector
from dlm.decoding.validation import faults_of
from dlm.errors import RequestError
from dlm.models.arrangement import Arrangement
from dlm.models.attention import AttentionBackend
from dlm.models.backbone import Backbone
from dlm.models.devices import free_memory, upload
from dlm.models.families import SpecialTokens


class Decoder:
    """Decodes requests with one model.

    Args:
        backbone: the model.
        special: its mask id and the ids that end an answer.
        options: limits.
        backend: the attention to use; None chooses by device and dtype.
        recorder: records repeating forwards (see `choose_recorder`); None chooses by device.
    """

    def __init__(
        self,
        backbone: Backbone,
        special: SpecialTokens,
        options: DecoderOptions | None = None,
        *,
        backend: AttentionBackend | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.options = options or DecoderOptions()
        self.arrangement = Arrangement.of(backbone, self.options.deterministic, backend)
        self.backbone = backbone = self.arrangement.backbone
        self.backend, self.special = self.arrangement.backend, special
        config = backbone.config
        self.arena = Arena(
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
            self._arena_tokens(),
            dtype=backbone.dtype,
            device=backbone.device,
            poison=self.options.poison,
        )
        chosen = None if self.options.enforce_eager else choose_recorder(backbone, self.backend, recorder)
        self.graphs = Graphs(backbone, self.arena, chosen)
        self.sharing = PromptSharing(self.arena)
        self.scheduler: Scheduler[Canvas] = Scheduler(self.options.max_num_seqs, self.options.max_num_batched_tokens)
        max_rows = rows_within(self.options.logits_mib, config.vocab_size, backbone.dtype)
        self.selector = Selector(backbone, special, max_rows)
        self.stats = DecoderStats(max_num_seqs=self.options.max_num_seqs)
        self._waiting: deque[Canvas] = deque()
        self._finished: list[Completion] = []
        self._broken: dict[Canvas, Exception] = {}
        self._stopping = False

    def _arena_tokens(self) -> int:
        config, options = self.backbone.config, self.options
        if options.arena_tokens is not None:
            return options.arena_tokens
        wanted = options.max_num_seqs * config.max_positions
        slot_bytes = config.kv_values_per_token * self.backbone.dtype.itemsize
        return max(config.max_positions, min(wanted, free_memory(self.backbone.device) // 4 // slot_bytes))

    # Requests in

    def check(self, request: Request) -> None:
        """Raise `RequestError` if this decoder can never run the request; all faults in one message."""
        outside = [token for token in request.prompt_ids if not 0 <= token < self.backbone.config.vocab_size]
        if outside:
            size = self.backbone.config.vocab_size
            raise RequestError(f"prompt token {outside[0]} is outside the vocabulary 0..{size - 1}")
        canvas = self._canvas(request, 0, 0)
        faults = faults_of(canvas, self.backbone.config, self.special, self.arena.ranges.capacity)
        if faults:
            raise RequestError("; ".join(faults))

    def _canvas(self, request: Request, sample: int, seed: int) -> Canvas:
        return Canvas(request, sample, seed, self.special.mask_id, shifted=self.backbone.config.shifted)

    def add(self, request: Request) -> None:
        """Queue a request; it joins at the next step with room. Raises `RequestError`."""
        self.check(request)
        seed = secrets.randbits(63) if request.params.seed is None else request.params.seed
        for sample in range(request.params.n):
            self._waiting.append(self._canvas(request, sample, seed))

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self.scheduler.running)

    def run(
        self, requests: Iterable[Request], *, on_step: Callable[[StepReport], None] | None = None
    ) -> Iterator[Completion]:
        """Decode `requests`, pulled one by one as there is room, and yield completions as they finish.

        A request that cannot be decoded yields a completion with `error`; others are unaffected. When the iterator is
        closed or `stop` is called, unfinished canvases are dropped.
        """
        source = iter(requests)
        more = True
        try:
            while not self._stopping:
                while more and self.scheduler.has_room and not self._waiting:
                    request = next(source, None)
                    if request is None:
                        more = False
                        break
                    try:
                        self.add(request)
                    except RequestError as error:
                        yield refusal_of(request, error)
                    self._admit()
                if not self.has_work:
                    if more:
                        continue
                    return
                finished, report = self.step()
                if on_step is not None:
                    on_step(report)
                yield from finished
        finally:
            self.drop_all()

    def stop(self) -> None:
        """End `run` after the current step, and any later `run` immediately; safe to call from a signal handler or
        another thread."""
        self._stopping = True

    def drop_all(self) -> None:
        """Drop every canvas and free its arena ranges."""
        for canvas in list(self.scheduler.running):
            self._remove(canvas)
        with torch.inference_mode():
            self.sharing.forget_all()
        self._waiting.clear()
        self._finished.clear()
        self._broken.clear()

    def cancel(self, request_id: str) -> bool:
        """Drop a request between two steps and free its ranges; returns whether there was one."""
        return self._forget(request_id)

    def _forget(self, request_id: str) -> bool:
        waiting = [canvas for canvas in self._waiting if canvas.request.id == request_id]
        running = [canvas for canvas in self.scheduler.running if canvas.request.id == request_id]
        for canvas in waiting:
            self._waiting.remove(canvas)
        for canvas in running:
            self._remove(canvas)
        with torch.inference_mode():
            for canvas in (*waiting, *running):
                self.sharing.forget(canvas.request)
        return bool(waiting or running)

    @torch.inference_mode()
    def _admit(self) -> None:
        """Admit waiting canvases, in order, while there is room."""
        while self._waiting and self.scheduler.has_room:
            canvas = self._waiting[0]
            if self.sharing.must_wait(canvas) or not self._place(canvas):
                return
            canvas.admitted = time.perf_counter()
            self.scheduler.admit(self._waiting.popleft())

    def _place(self, canvas: Canvas) -> bool:
        """Allocate all arena ranges of a canvas or none; returns whether there was room."""
        count, length = 2 if canvas.guided else 1, canvas.request.engine.slots(canvas)
        canvas.slots = tuple(self.arena.take(length) if length else None for _ in range(count))
        if (length and None in canvas.slots) or not self.sharing.begin(canvas):
            self._give_back(canvas.slots)
            canvas.slots = ()
            return False
        return True

    def _give_back(self, slots: Sequence[int | None]) -> None:
        with torch.inference_mode():
            for slot in slots:
                if slot is not None:
                    self.arena.give_back(slot)

    def _remove(self, canvas: Canvas) -> None:
        self.scheduler.remove(canvas)
        self._give_back(canvas.slots)
        canvas.slots = ()

    # The step

    @torch.inference_mode()
    def step(self) -> tuple[list[Completion], StepReport]:
        """One forward for every canvas that fits: plan, forward, select, commit.

        If it raises, no canvas has lost state: `step_apart` finds those that cannot continue.
        """
        begun = time.perf_counter()
        self._admit()
        report = self._step_of(self.scheduler.pick(lambda canvas: canvas.cost))
        self.stats.seconds += time.perf_counter() - begun
        finished, self._finished = self._finished, []
        return finished, report

    @torch.inference_mode()
    def step_apart(self) -> list[Completion]:
        """After `step` raised, run one forward for each canvas alone. Requests that fail again end with the error; the
        others continue with the same result."""
        for canvas in list(self.scheduler.running):
            if canvas not in self.scheduler.running:
                continue
            if canvas not in self._broken:
                try:
                    self._step_of([canvas])
                except Exception as error:
                    self._broken[canvas] = error
            if canvas in self._broken:
                self._fail(canvas, self._broken[canvas])
        finished, self._finished = self._finished, []
        return finished

    def _fail(self, canvas: Canvas, error: Exception) -> None:
        """End the canvas's request with `error`."""
        self._forget(canvas.request.id)
        self._broken = {one: cause for one, cause in self._broken.items() if one.request is not canvas.request}
        self._finished.append(failure_of(canvas, error))

    def _step_of(self, canvases: Sequence[Canvas]) -> StepReport:
        batch = Batch.of(canvases)
        hidden = self._forward(batch)
        revealed = self._commit(canvases, self.selector.select(batch, canvases, hidden))
        self.stats.num_steps += 1
        self.stats.num_rows += batch.num_rows
        self.stats.num_canvases += len(canvases)
        self.stats.num_revealed += revealed
        engines = frozenset(canvas.request.engine.name for canvas in canvases)
        return StepReport(len(canvases), batch.num_rows, revealed, engines)

    def _forward(self, batch: Batch) -> Tensor:
        """Hidden states `[num_rows, hidden]` of the packed windows: the step's only model call."""
        recorded = self.graphs.forward(batch)
        if recorded is not None:
            return recorded
        device = self.backbone.device
        attention = self.backend(batch.segments, self.arena.keys, self.arena.values)
        token_ids, positions = upload(batch.token_ids(), device), upload(batch.positions(), device)
        embedded = smoothing.embed(self.backbone, batch, token_ids)
        drafts = batch.drafts() if self.backbone.has_drafter else None
        flags = None if drafts is None else upload(drafts, device)
        hidden: Tensor = self.backbone(token_ids, positions, attention, embedded, flags)
        return hidden

    def _commit(self, canvases: Sequence[Canvas], choices: Sequence[Selection]) -> int:
        """Write each selection, advance finished blocks, remove finished canvases; returns the number written.

        A canvas whose logits are not finite ends its request. An exception of one canvas (its request's callbacks may
        raise) is raised once all have advanced.
        """
        chosen = list(zip(canvases, choices, strict=True))
        if any(choice.unsound is not None for choice in choices):
            for canvas, choice in chosen:
                if choice.unsound is not None and canvas in self.scheduler.running:
                    self._fail(canvas, not_finite(canvas, choice.unsound))
            chosen = [(canvas, choice) for canvas, choice in chosen if canvas in self.scheduler.running]
        for canvas, choice in chosen:
            try:
                self._advance(canvas, choice)
            except Exception as error:
                self._broken[canvas] = error
        for canvas in canvases:
            if canvas in self._broken:
                raise self._broken[canvas]
        return sum(len(choice.positions) for choice in choices)

    def _advance(self, canvas: Canvas, choice: Selection) -> None:
        weight = smoothing.weight(canvas)
        canvas.count_forward()
        canvas.write(choice.positions, choice.tokens, choice.cleared, choice.logprobs, choice.token_stats)
        canvas.finish_forward()
        grow(canvas)
        self.sharing.computed(canvas)
        smoothing.remember(canvas, self.backbone, weight)
        goes_on = ending.goes_on(canvas, choice, self.special.end_ids)
        if canvas.request.watch is not None:
            canvas.request.watch(progress_of(canvas, choice, self.special.end_ids, block_done=not goes_on))
        if goes_on:
            canvas.prepare()
            return
        over = ending.enter_next(canvas, self.special.end_ids)
        if over is not None:
            answer, stopped = over
            self._finished.append(completion_of(canvas, answer, stopped=stopped))
            self._remove(canvas)
