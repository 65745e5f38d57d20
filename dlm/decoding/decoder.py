"""The loop: plan, forward, select, commit. Token ids in, token ids out; knows no text, no Hydra, no Lightning, no HTTP.

    decoder = Decoder(backbone, special, DecoderOptions(max_num_seqs=32))
    for completion in decoder.run(requests):
        ...

The windows of all canvases that step together are one packed batch and one model call. What comes out for a request
does not depend on what it is batched with.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dlm.decoding import noise
from dlm.decoding.arena import Arena
from dlm.decoding.canvas import Canvas, IntArray
from dlm.decoding.engines import Window
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Scores, Turn
from dlm.decoding.scheduler import Scheduler
from dlm.decoding.scoring import Proposals, ScoreSpec, score
from dlm.errors import RequestError
from dlm.models.attention import AttentionBackend, Segment, choose_backend, packing_order
from dlm.models.backbone import Backbone
from dlm.models.families import SpecialTokens


@dataclass(frozen=True)
class DecoderOptions:
    """How much the decoder holds at once.

    Attributes:
        max_num_seqs: canvases in flight (a guided pair counts once).
        max_num_batched_tokens: rows of one forward.
        arena_tokens: slots of the key/value arena; None sizes it for `max_num_seqs` canvases of the model's full
            length, within a quarter of the memory that is free.
        logits_mib: memory for rows of logits, in MiB; more rows are taken in chunks.
        poison: fill freed arena ranges with NaN (tests).
    """

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 8192
    arena_tokens: int | None = None
    logits_mib: int = 512
    poison: bool = False


@dataclass(frozen=True)
class StepReport:
    """What one forward held: for progress displays and tests."""

    num_canvases: int
    num_rows: int
    num_revealed: int
    engines: frozenset[str]


@dataclass
class DecoderStats:
    """Totals since the decoder was made. Occupancy is the share of `max_num_seqs` that took part in a forward."""

    num_steps: int = 0
    num_rows: int = 0
    num_revealed: int = 0
    num_canvases: int = 0
    max_num_seqs: int = 1
    seconds: float = 0.0

    @property
    def mean_occupancy(self) -> float:
        """Mean over forwards, 0..1; nan before the first."""
        return self.num_canvases / (self.num_steps * self.max_num_seqs) if self.num_steps else math.nan


@dataclass(frozen=True)
class Entry:
    """One window of a step: of a canvas, or of its unconditional twin."""

    canvas: Canvas
    window: Window
    twin: bool
    slot: int | None

    @property
    def rows(self) -> int:
        return self.window.stop - self.window.start

    def segment(self, row: int) -> Segment:
        """The window as rows `[row, row + rows)` of a packed batch."""
        slot = self.slot
        if slot is None:
            return Segment(row, self.rows)
        kept = slot + self.window.start if self.window.keep else None
        if self.window.cached:
            return Segment(row, self.rows, kept, slot, self.canvas.length)
        return Segment(row, self.rows, kept)

    def token_ids(self) -> IntArray:
        """The window's tokens; a twin sees no prompt."""
        window = slice(self.window.start, self.window.stop)
        tokens = self.canvas.tokens[window]
        return np.where(self.canvas.given[window], self.canvas.mask_id, tokens) if self.twin else tokens


@dataclass
class Batch:
    """One packed forward: its windows in row order, and the head rows of each canvas."""

    entries: list[Entry] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    rows: dict[tuple[int, bool], int] = field(default_factory=dict)
    num_rows: int = 0

    def add(self, entry: Entry) -> None:
        self.rows[id(entry.canvas), entry.twin] = self.num_rows - entry.window.start
        self.entries.append(entry)
        self.segments.append(entry.segment(self.num_rows))
        self.num_rows += entry.rows

    def head_rows(self, canvas: Canvas, positions: IntArray, twin: bool = False) -> IntArray:
        """Rows of the batch where the canvas's `positions` stand."""
        return positions + self.rows[id(canvas), twin]


class Decoder:
    """Decodes requests with one model.

    Args:
        backbone: the model.
        special: its mask id and the ids that end an answer.
        options: limits.
        backend: the attention to use; None chooses by device and dtype.
    """

    def __init__(
        self,
        backbone: Backbone,
        special: SpecialTokens,
        options: DecoderOptions | None = None,
        *,
        backend: AttentionBackend | None = None,
    ) -> None:
        self.backbone, self.special = backbone, special
        self.options = options or DecoderOptions()
        self.backend = backend or choose_backend(backbone.device, backbone.dtype)
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
        self.scheduler: Scheduler[Canvas] = Scheduler(self.options.max_num_seqs, self.options.max_num_batched_tokens)
        row_bytes = config.vocab_size * max(4, backbone.dtype.itemsize)
        self.max_head_rows = max(4, (self.options.logits_mib << 20) // row_bytes)
        self.stats = DecoderStats(max_num_seqs=self.options.max_num_seqs)
        self._waiting: deque[Canvas] = deque()
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
        """Raise `RequestError` when the request can never be decoded here; all faults in one message."""
        config, params, prompt = self.backbone.config, request.params, request.prompt_ids
        faults = []
        if not prompt:
            faults.append("the prompt is empty; give at least one token")
        outside = [token for token in prompt if not 0 <= token < config.vocab_size]
        if outside:
            faults.append(f"prompt token {outside[0]} is outside the vocabulary 0..{config.vocab_size - 1}")
        length = len(prompt) + params.gen_length
        if length > config.max_positions:
            faults.append(
                f"prompt of {len(prompt)} tokens and gen_length={params.gen_length} make {length} positions, the "
                f"model has {config.max_positions}; shorten one of them"
            )
        if params.logits_eos_inf and self.special.eos_id is None:
            faults.append("logits_eos_inf needs an end-of-sequence token, the model names none")
        slots = length * (2 if params.cfg_scale > 0 else 1)
        if request.engine.uses_cache and slots > self.arena.ranges.capacity:
            faults.append(
                f"the request needs {slots} arena slots, the arena has {self.arena.ranges.capacity}; raise arena_tokens"
            )
        if not faults:
            canvas = Canvas(request, 0, 0, self.special.mask_id)
            try:
                request.sampler.check(params, len(canvas.blocks))
            except RequestError as error:
                faults.append(str(error))
        if faults:
            raise RequestError("; ".join(faults))

    def add(self, request: Request) -> None:
        """Queue a request; it joins at the next step that has room. Raises `RequestError`."""
        self.check(request)
        seed = secrets.randbits(63) if request.params.seed is None else request.params.seed
        for sample in range(request.params.n):
            self._waiting.append(Canvas(request, sample, seed, self.special.mask_id))

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self.scheduler.running)

    def run(
        self, requests: Iterable[Request], *, on_step: Callable[[StepReport], None] | None = None
    ) -> Iterator[Completion]:
        """Decode `requests`, pulled one by one as there is room, and yield completions as they finish.

        A request that cannot be decoded yields a completion with `error`; its neighbours are unharmed. When the
        iterator is closed or `stop` is called the unfinished canvases are dropped.
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
                        yield self._refusal(request, error)
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
        """Make `run` end after the step in progress, and every later `run` at once; safe to call from a signal handler
        or another thread."""
        self._stopping = True

    def drop_all(self) -> None:
        """Forget every canvas and free its ranges."""
        for canvas in list(self.scheduler.running):
            self._remove(canvas)
        self._waiting.clear()

    def _admit(self) -> None:
        while self._waiting and self.scheduler.has_room:
            canvas = self._waiting[0]
            count = 2 if canvas.guided else 1
            if canvas.request.engine.uses_cache:
                slots: list[int | None] = []
                with torch.inference_mode():
                    for _ in range(count):
                        slots.append(self.arena.take(canvas.length))
                if None in slots:
                    self._give_back(slots)
                    return
                canvas.slots = tuple(slots)
            else:
                canvas.slots = (None,) * count
            canvas.admitted = time.perf_counter()
            self.scheduler.admit(self._waiting.popleft())

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
        """One forward for every canvas that fits: plan, forward, select, commit."""
        begun = time.perf_counter()
        self._admit()
        canvases = self.scheduler.pick(self._cost)
        batch = self._plan(canvases)
        hidden = self._forward(batch)
        finished, revealed = self._commit(canvases, self._select(batch, canvases, hidden))
        self.stats.num_steps += 1
        self.stats.num_rows += batch.num_rows
        self.stats.num_canvases += len(canvases)
        self.stats.num_revealed += revealed
        self.stats.seconds += time.perf_counter() - begun
        engines = frozenset(canvas.request.engine.name for canvas in canvases)
        return finished, StepReport(len(canvases), batch.num_rows, revealed, engines)

    @staticmethod
    def _cost(canvas: Canvas) -> int:
        window = canvas.request.engine.window(canvas)
        return (window.stop - window.start) * (2 if canvas.guided else 1)

    def _plan(self, canvases: Sequence[Canvas]) -> Batch:
        """The windows of one forward, sorted so that equal shapes lie together."""
        entries = []
        for canvas in canvases:
            window = canvas.request.engine.window(canvas)
            entries += [Entry(canvas, window, bool(twin), slot) for twin, slot in enumerate(canvas.slots)]
        batch = Batch()
        for entry in sorted(entries, key=self._order):
            batch.add(entry)
        return batch

    @staticmethod
    def _order(entry: Entry) -> tuple[bool, int, int, int]:
        segment = entry.segment(0)
        return packing_order(segment.rows, segment.num_keys, segment.key_start)

    def _forward(self, batch: Batch) -> Tensor:
        """Hidden states `[num_rows, hidden]` of the packed windows: the one model call of a step."""
        device = self.backbone.device
        token_ids = np.concatenate([entry.token_ids() for entry in batch.entries])
        positions = np.concatenate([np.arange(e.window.start, e.window.stop) for e in batch.entries])
        attention = self.backend(batch.segments, self.arena.keys, self.arena.values)
        hidden: Tensor = self.backbone(_upload(token_ids, device), _upload(positions, device), attention)
        return hidden

    def _select(self, batch: Batch, canvases: Sequence[Canvas], hidden: Tensor) -> list[Choice]:
        """What each canvas reveals. One transfer from the device, and a second when a canvas proposes only masks."""
        for canvas in canvases:
            canvas.nfe += 1
            canvas.positions += self._cost(canvas)
        candidates = [canvas.masked() for canvas in canvases]
        scored = self._score(batch, canvases, candidates, hidden, ban_mask=False)
        choices = [
            self._choose(canvas, where, rows) for canvas, where, rows in zip(canvases, candidates, scored, strict=True)
        ]
        barred = [i for i, canvas in enumerate(canvases) if len(choices[i].positions) < canvas.demanded()]
        if barred:
            some, where = [canvases[i] for i in barred], [candidates[i] for i in barred]
            rescored = self._score(batch, some, where, hidden, ban_mask=True)
            for i, rows in zip(barred, rescored, strict=True):
                choices[i] = self._choose(canvases[i], candidates[i], rows)
        return choices

    def _score(
        self,
        batch: Batch,
        canvases: Sequence[Canvas],
        candidates: Sequence[IntArray],
        hidden: Tensor,
        *,
        ban_mask: bool,
    ) -> list[Proposals]:
        """What each canvas's candidates propose, scored together where the specs agree."""
        groups: dict[ScoreSpec, list[int]] = {}
        for index, canvas in enumerate(canvases):
            groups.setdefault(self._spec(canvas, ban_mask), []).append(index)
        parts: list[Tensor] = []
        for spec, members in groups.items():
            some = [(canvases[index], candidates[index]) for index in members]
            rows = np.concatenate([batch.head_rows(canvas, where) for canvas, where in some])
            twin = keys = None
            if spec.cfg_scale:
                twin_rows = np.concatenate([batch.head_rows(canvas, where, twin=True) for canvas, where in some])
                twin = hidden[_upload(twin_rows, hidden.device)]
            if spec.temperature:
                row_keys = np.concatenate([noise.keys(c.seed, c.sample, c.nfe, where) for c, where in some])
                keys = _upload(row_keys.view(np.int64), hidden.device)
            rows_on_device = _upload(rows, hidden.device)
            parts.append(score(self.backbone, hidden[rows_on_device], twin, keys, spec, self.max_head_rows))
        table = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).cpu().numpy()
        results: dict[int, Proposals] = {}
        first = 0
        for spec, members in groups.items():
            for index in members:
                last = first + len(candidates[index])
                results[index] = Proposals.from_table(table[:, first:last], spec)
                first = last
        return [results[index] for index in range(len(canvases))]

    def _spec(self, canvas: Canvas, ban_mask: bool) -> ScoreSpec:
        params, special = canvas.request.params, self.special
        warm = params.temperature > 0
        banned = (special.eos_id,) if params.logits_eos_inf and special.eos_id is not None else ()
        return ScoreSpec(
            order=canvas.request.sampler.order,
            temperature=params.temperature,
            top_k=params.top_k if warm else 0,
            top_p=params.top_p if warm else 1.0,
            cfg_scale=params.cfg_scale,
            banned=(*banned, special.mask_id) if ban_mask else banned,
            deferred=special.end_ids if params.confidence_eos_eot_inf else (),
            record=params.record,
        )

    def _choose(self, canvas: Canvas, candidates: IntArray, proposals: Proposals) -> Choice:
        """Ask the sampler; drop mask proposals; keep the budget of `max_nfe` and the guarantee of progress."""
        rank = proposals.rank
        if canvas.request.sampler.order == "random":
            rank = noise.uniform(noise.keys(canvas.seed, canvas.sample, canvas.nfe, candidates, noise.ORDER))
        scores = Scores(rank, proposals.log_odds, proposals.tokens == canvas.mask_id)
        turn = Turn(canvas.block_steps, canvas.block.steps, canvas.block_masks, canvas.block_masks - len(candidates))
        chosen, canvas.memory = canvas.request.sampler.select(scores, turn, canvas.memory)
        chosen = chosen[~scores.proposes_mask[chosen]]
        short = canvas.demanded() - len(chosen)
        if short > 0 and (len(chosen) or not scores.proposes_mask.any()):
            ranked = scores.descending()
            spare = ranked[~scores.proposes_mask[ranked] & ~np.isin(ranked, chosen)]
            chosen = np.concatenate((chosen, spare[:short]))
        recorded = proposals.logprobs[chosen] if canvas.request.params.record else None
        return Choice(candidates[chosen], proposals.tokens[chosen], recorded)

    def _commit(self, canvases: Sequence[Canvas], choices: Sequence[Choice]) -> tuple[list[Completion], int]:
        """Write what was chosen, move on where a block is done, and take out what has ended."""
        finished = []
        for canvas, choice in zip(canvases, choices, strict=True):
            canvas.reveal(choice.positions, choice.tokens, choice.logprobs)
            canvas.block_steps += 1
            if len(canvas.masked()):
                continue
            answer, ended = canvas.answer(self.special.end_ids)
            stop = canvas.request.should_stop
            halted = stop is not None and stop(answer.tolist())
            if halted or (ended and not canvas.request.params.ignore_eos) or not canvas.next_block():
                finished.append(self._complete(canvas, answer, ended or halted))
                self._remove(canvas)
        return finished, sum(len(choice.positions) for choice in choices)

    # Completions out

    def _complete(self, canvas: Canvas, answer: IntArray, ended: bool) -> Completion:
        request, prompt = canvas.request, canvas.prompt_length
        limit = request.params.max_tokens
        cut = limit is not None and len(answer) > limit
        record = request.params.record
        return Completion(
            request_id=request.id,
            sample=canvas.sample,
            seed=canvas.seed,
            prompt_ids=tuple(canvas.tokens[:prompt].tolist()),
            token_ids=tuple(answer[:limit].tolist()),
            canvas_ids=tuple(canvas.tokens[prompt:].tolist()),
            finish_reason="stop" if ended and not cut else "length",
            nfe=canvas.nfe,
            positions=canvas.positions,
            seconds=time.perf_counter() - canvas.admitted,
            step_map=tuple(canvas.step_map[prompt:].tolist()) if record else None,
            logprobs=tuple(canvas.logprobs[prompt:].tolist()) if record else None,
        )

    @staticmethod
    def _refusal(request: Request, error: RequestError) -> Completion:
        return Completion(request.id, 0, request.params.seed or 0, request.prompt_ids, error=str(error))


@dataclass(frozen=True)
class Choice:
    """What one canvas reveals: positions, tokens and, when recorded, log-probabilities."""

    positions: IntArray
    tokens: IntArray
    logprobs: np.ndarray | None


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def free_memory(device: torch.device) -> int:
    """Bytes free on `device`; on a CPU the memory that the machine can hand out now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo", encoding="ascii") as lines:
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return available * 1024
