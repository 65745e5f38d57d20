"""Where our time goes, by part, against the ideal of each: the bottleneck of a row that falls short of its ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from dlm.bench.machine.stopwatch import Stopwatch
from dlm.bench.sides import decode
from dlm.bench.workloads import Case
from dlm.decoding.canvas import Canvas
from dlm.decoding.decoder import Decoder
from dlm.decoding.packing import Batch
from dlm.decoding.scoring.selection import Selection, Selector
from dlm.models.attention.segments import Segment
from dlm.models.backbone import Backbone, Layer, RMSNorm
from dlm.models.experts import Experts

PARTS = ("embedding", "norms", "matmul", "attention", "elementwise", "head", "scores", "host")
"""`matmul` includes whole expert layers; `elementwise`: rotary embedding, activation, residuals; `scores`: from logits
to reveals; `host`: planning and bookkeeping."""


class Clock:
    """Seconds by part; parts nest, and time in an inner part is not charged to the outer one."""

    def __init__(self, now: Stopwatch) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._now = now
        self._open: list[str] = []
        self._last = 0.0

    def enter(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = self._now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()


def module_parts(backbone: Backbone) -> Iterator[tuple[nn.Module, str]]:
    """Each timed module and its part."""
    yield backbone.embedding, "embedding"
    yield backbone.lm_head, "head"
    for module in backbone.modules():
        if isinstance(module, RMSNorm):
            yield module, "norms"
        elif isinstance(module, Layer):
            yield module, "elementwise"
        elif isinstance(module, Experts | nn.Linear) and module is not backbone.lm_head:
            yield module, "matmul"


class TimedSelector(Selector):
    """A selector whose time is charged to `scores`."""

    def __init__(self, decoder: Decoder, clock: Clock) -> None:
        super().__init__(decoder.backbone, decoder.special, decoder.selector.max_rows)
        self.clock = clock

    def select(self, batch: Batch, canvases: Sequence[Canvas], hidden: Tensor) -> list[Selection]:
        with self.clock.part("scores"):
            return super().select(batch, canvases, hidden)


def profile(decoder: Decoder, case: Case, now: Stopwatch) -> dict[str, float]:
    """Seconds by part of one run of the case, after a warm-up run; they add up to the run's time."""
    backbone = decoder.backbone
    clock = Clock(now)
    chosen = decoder.backend

    def backend(segments: Sequence[Segment], keys: Tensor | None, values: Tensor | None) -> Callable[..., Tensor]:
        attention = chosen(segments, keys, values)

        def timed(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with clock.part("attention"):
                return attention(layer, query, key, value)

        return timed

    timed = Decoder(backbone, decoder.special, decoder.options, backend=backend)
    timed.selector = TimedSelector(timed, clock)
    hooks = []
    for module, part in module_parts(backbone):
        hooks.append(module.register_forward_pre_hook(lambda *_, part=part: clock.enter(part)))
        hooks.append(module.register_forward_hook(lambda *_: clock.leave()))
    try:
        decode(timed, case, now)
        clock.seconds = dict.fromkeys(PARTS, 0.0)
        with clock.part("host"):
            decode(timed, case, now)
    finally:
        for hook in hooks:
            hook.remove()
    return clock.seconds
