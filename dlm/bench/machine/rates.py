"""Measured rates of this machine: torch's matmul, attention and softmax at given shapes, and memory bandwidth.

A `Meter` is for one row of the table. Its probes are timed in every round, next to the two programs, so that they see
the machine in the same state; a rate is the median over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.bench.bounds.ceiling import ForwardShape, Matmul
from dlm.bench.machine.stopwatch import Stopwatch
from dlm.bench.reference import ReferenceModel, ReferenceProgram
from dlm.bench.workloads import Forward
from dlm.models.backbone import ROW_TILE, Backbone, Layer

MAX_PROBES = 10
"""Beyond this many distinct row counts, only representatives are timed."""

PROBE_SECONDS = 0.03
SCORE_SLICE_BYTES = 4 << 20


@dataclass
class Probe:
    """A function to time, and the seconds of each call."""

    call: Callable[[], object]
    samples: list[float] = field(default_factory=list)

    def sample(self, now: Stopwatch) -> None:
        """One round: at least one call, about `PROBE_SECONDS` in total, each call timed separately."""
        if not self.samples:
            self.call()
        spent = 0.0
        while spent < PROBE_SECONDS:
            begun = now()
            self.call()
            self.samples.append(now() - begun)
            spent += self.samples[-1]

    @property
    def seconds(self) -> float:
        """Median over all calls."""
        return statistics.median(self.samples)


def nearest(wanted: int, known: Sequence[int]) -> int:
    """The one of `known` whose ratio to `wanted` is closest to 1."""
    return min(known, key=lambda value: max(value, wanted) / min(value, wanted))


def representatives(counts: Sequence[int]) -> list[int]:
    """The distinct counts, or, if there are many, the median of each group of counts within a factor of two."""
    ordered = sorted(set(counts))
    if len(ordered) <= MAX_PROBES:
        return ordered
    groups: dict[int, list[int]] = {}
    for count in sorted(counts):
        groups.setdefault(count.bit_length(), []).append(count)
    return [statistics.median_low(group) for group in groups.values()]


class SideMeter:
    """Probes of one side; once sampled it is that side's `ceiling.Rates`.

    Args:
        backbone: provides the weights of the matmul probes.
        head: the LM head in this side's memory layout.
        forwards, shape: the side's forwards, and their shape.
        score: scores rows of logits, for a probe.
        score_rows: rows in the score probe.
        memory, memory_bytes: the probe of memory bandwidth, shared by both sides, and the bytes it reads.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Tensor,
        forwards: Sequence[Forward],
        shape: ForwardShape,
        score: Callable[[Tensor], object],
        score_rows: int,
        memory: Probe,
        memory_bytes: int,
    ) -> None:
        self.shape, self._memory, self._memory_bytes = shape, memory, memory_bytes
        self._device, self._dtype = backbone.device, backbone.dtype
        self._heads = (shape.query_width // backbone.config.head_dim, backbone.config.head_dim)
        fed = representatives([shape.padded(forward.rows) for forward in forwards])
        scored = representatives([shape.padded(forward.head_rows) for forward in forwards])
        weights = {**_layer_weights(backbone, shape), shape.head: head}
        self._matmuls = {
            layer: {rows: Probe(self._matmul(rows, weight)) for rows in (scored if layer == shape.head else fed)}
            for layer, weight in weights.items()
        }
        windows: dict[int, list[int]] = {}
        for forward in forwards:
            for queries, keys in forward.windows:
                windows.setdefault(queries, []).append(keys)
        self._attentions = {
            queries: (keys, Probe(self._attend(queries, keys)))
            for queries in representatives([q for forward in forwards for q, _ in forward.windows])
            for keys in (statistics.median_low(windows[queries]),)
        }
        self._score_rows = score_rows
        logits = torch.randn(score_rows, shape.head[1], device=self._device).to(self._dtype)
        self._score = Probe(lambda: score(logits))

    def _matmul(self, rows: int, weight: Tensor) -> Callable[[], Tensor]:
        x = torch.randn(rows, weight.shape[1], device=self._device).to(self._dtype)
        return lambda: F.linear(x, weight)

    def _attend(self, queries: int, keys: int) -> Callable[[], Tensor]:
        heads, head_dim = self._heads
        q, k, v = (
            torch.randn(1, length, heads, head_dim, device=self._device).to(self._dtype).transpose(1, 2)
            for length in (queries, keys, keys)
        )
        return lambda: F.scaled_dot_product_attention(q, k, v)

    def sample(self, now: Stopwatch) -> None:
        """One round."""
        for probes in self._matmuls.values():
            for probe in probes.values():
                probe.sample(now)
        for _, probe in self._attentions.values():
            probe.sample(now)
        self._score.sample(now)

    @property
    def bandwidth(self) -> float:
        return self._memory_bytes / self._memory.seconds

    def matmul(self, rows: int, layer: Matmul) -> float:
        at = nearest(rows, list(self._matmuls[layer]))
        return 2.0 * at * layer[0] * layer[1] / self._matmuls[layer][at].seconds

    def attention(self, queries: int, keys: int) -> float:
        at = nearest(queries, list(self._attentions))
        probed_keys, probe = self._attentions[at]
        return 4.0 * at * probed_keys * self.shape.query_width / probe.seconds

    def score_row(self) -> float:
        return self._score.seconds / self._score_rows


def _layer_weights(backbone: Backbone, shape: ForwardShape) -> dict[Matmul, Tensor]:
    """A weight of the right size for each linear layer of the shape, taken from the first layer."""
    first = cast(Layer, backbone.layers[0])
    stored = [first.qkv.weight, first.attention_out.weight, first.gate_up.weight, first.down.weight]
    found = {}
    for width_in, width_out in shape.layer_matmuls:
        fits = next(w for w in stored if w.shape[1] == width_in and w.shape[0] >= width_out)
        found[width_in, width_out] = fits[:width_out]
    return found


def argmax_and_softmax(dtype: torch.dtype | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A reference's scores of rows of logits: each row's argmax, and a softmax in `dtype` (None: the logits' own)."""
    return lambda logits: (logits.argmax(-1), F.softmax(logits, dim=-1, dtype=dtype))


def max_and_sum(logits: Tensor) -> list[Tensor]:
    """Our least work on rows of logits: each row's maximum and sum of exponentials, in slices on a CPU so that each
    slice stays in its cache."""
    rows = max(1, SCORE_SLICE_BYTES // (logits.shape[1] * logits.element_size()))
    sums = []
    for part in torch.split(logits, rows if logits.device.type == "cpu" else logits.shape[0]):
        wide = part.float()
        sums.append((wide - wide.amax(-1, keepdim=True)).exp_().sum(-1))
    return sums


def reference_shape(backbone: Backbone) -> ForwardShape:
    """Separate projections, rows not rounded."""
    config = backbone.config
    hidden, inner = config.hidden_size, config.intermediate_size
    wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layers = (
        (hidden, wide),
        (hidden, narrow),
        (hidden, narrow),
        (wide, hidden),
        *[(hidden, inner)] * 2,
        (inner, hidden),
    )
    return ForwardShape(layers, config.num_layers, (hidden, config.vocab_size), wide, narrow, backbone.dtype.itemsize)


def packed_shape(backbone: Backbone) -> ForwardShape:
    """Fused projections, rows rounded up."""
    config = backbone.config
    hidden, inner = config.hidden_size, config.intermediate_size
    wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layers = ((hidden, wide + 2 * narrow), (wide, hidden), (hidden, 2 * inner), (inner, hidden))
    head = (hidden, config.vocab_size)
    return ForwardShape(layers, config.num_layers, head, wide, narrow, backbone.dtype.itemsize, ROW_TILE)


class Meter:
    """The probes of both sides for one row, and of the memory.

    Args:
        backbone: the model.
        reference: the same weights in the reference's layout.
        program: the reference program.
        ours, theirs: the forwards of each side.
    """

    def __init__(
        self,
        backbone: Backbone,
        reference: ReferenceModel,
        program: ReferenceProgram,
        ours: Sequence[Forward],
        theirs: Sequence[Forward],
    ) -> None:
        block, count = memory_block(backbone.device)
        self._memory = Probe(lambda: block.sum())
        fed = statistics.median_low([forward.score_rows for forward in theirs if forward.score_rows])
        masked = min(32, max(forward.head_rows for forward in ours))
        memory = (self._memory, count)
        self.ours = SideMeter(
            backbone, backbone.lm_head.weight, ours, packed_shape(backbone), max_and_sum, masked, *memory
        )
        score = argmax_and_softmax(program.score_dtype)
        self.reference = SideMeter(backbone, reference.head, theirs, reference_shape(backbone), score, fed, *memory)

    @torch.inference_mode()
    def sample(self, now: Stopwatch) -> None:
        """One round."""
        self._memory.sample(now)
        self.ours.sample(now)
        self.reference.sample(now)


def memory_block(device: torch.device) -> tuple[Tensor, int]:
    """A tensor much larger than the caches, to be read, and its size in bytes."""
    count = (256 << 20) if device.type == "cpu" else (4 << 30)
    return torch.ones(count // 4, device=device), count
