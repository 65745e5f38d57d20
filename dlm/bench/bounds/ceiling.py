"""How much faster than the reference our decoder could be, computed from operations, bytes and measured rates.

Each side is a list of forwards. The ideal time of a side is the sum over its forwards of

* its matmuls: the body for the positions recomputed, the head for the positions that get logits. One call costs
  max(flops / rate, bytes / bandwidth); the rate is what torch reaches for exactly that shape (rows of the call x width,
  in that dtype, on weights it has just used); bytes are the weights, the input and the output, once each;
* its attention: 4 x queries x keys x heads x head_dim flops per layer and window, at the rate of torch's attention for
  that shape, or the bytes of the keys and values, whichever takes longer;
* its scores: for the reference the argmax and the softmax of each row that it scores, for ours the maximum and the sum
  of exponentials of each row, at torch's seconds per row.

The reference's softmax follows its program: in float64 over every row of logits (LLaDA, Fast-dLLM), or over the block's
rows in float32 (dInfer) or in their own dtype (SDAR).

Norms, rotary embedding, activations, residuals, selection, Python and memory management cost nothing in either ideal.
The shapes are those of each program: one canvas per call and separate q, k, v, gate and up for the reference; the
packed windows of all canvases, rows rounded up to a multiple of `ROW_TILE`, and fused q/k/v and gate/up for ours.

    ceiling = ideal seconds of the reference / ideal seconds of ours
    ratio   = measured seconds of the reference / measured seconds of ours
    share   = ratio / ceiling

A share of 1 means that both sides have the same relative overhead on top of their necessary work.

Both sides reveal tokens by the same schedule, so the seconds are for equally many revealed tokens. The number of
forwards may differ: where a program prefills, stores a finished block or recomputes one in a separate call, ours does
it in the next step's call, or not at all.

Only dense, unshifted models have a reference; all others are measured against `dlm.bench.bounds.floor`.

Independent of torch and of clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dlm.bench.workloads import Forward

Matmul = tuple[int, int]
"""Input and output width of a linear layer."""


class Rates(Protocol):
    """Measured rates of the machine, for one side and dtype."""

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""

    def matmul(self, rows: int, layer: Matmul) -> float:
        """Flops per second of a linear layer on `rows` rows."""

    def attention(self, queries: int, keys: int) -> float:
        """Flops per second of one canvas's attention."""

    def score_row(self) -> float:
        """Seconds to score one row of logits."""


@dataclass(frozen=True)
class ForwardShape:
    """The parts of a model that cost time.

    Attributes:
        layer_matmuls: linear layers of one layer, as this side calls them.
        num_layers, head: number of layers, and the LM head.
        query_width, key_width: values per position in all query heads, and in all key heads.
        itemsize: bytes per value.
        row_tile: rows of a call are rounded up to a multiple of this.
    """

    layer_matmuls: tuple[Matmul, ...]
    num_layers: int
    head: Matmul
    query_width: int
    key_width: int
    itemsize: int
    row_tile: int = 1

    def padded(self, rows: int) -> int:
        """`rows` rounded up to a multiple of the row tile."""
        return -(-rows // self.row_tile) * self.row_tile


@dataclass(frozen=True)
class Seconds:
    """Time by part."""

    matmul: float
    attention: float
    head: float
    scores: float

    @property
    def total(self) -> float:
        return self.matmul + self.attention + self.head + self.scores


def matmul_seconds(rows: int, layer: Matmul, shape: ForwardShape, rates: Rates) -> float:
    """One call of a linear layer."""
    rows = shape.padded(rows)
    flops = 2.0 * rows * layer[0] * layer[1]
    moved = (layer[0] * layer[1] + rows * (layer[0] + layer[1])) * shape.itemsize
    return max(flops / rates.matmul(rows, layer), moved / rates.bandwidth)


def attention_seconds(windows: Sequence[tuple[int, int]], shape: ForwardShape, rates: Rates) -> float:
    """One layer's attention, over all canvases of a forward."""
    total = 0.0
    for queries, keys in windows:
        flops = 4.0 * queries * keys * shape.query_width
        moved = 2.0 * (queries * shape.query_width + keys * shape.key_width) * shape.itemsize
        total += max(flops / rates.attention(queries, keys), moved / rates.bandwidth)
    return total


def ideal(forwards: Sequence[Forward], shape: ForwardShape, rates: Rates) -> Seconds:
    """The time of the necessary work of these forwards."""
    body = attention = head = scores = 0.0
    for forward in forwards:
        layer = sum(matmul_seconds(forward.rows, matmul, shape, rates) for matmul in shape.layer_matmuls)
        body += shape.num_layers * layer
        attention += shape.num_layers * attention_seconds(forward.windows, shape, rates)
        head += matmul_seconds(forward.head_rows, shape.head, shape, rates)
        scores += forward.score_rows * rates.score_row()
    return Seconds(matmul=body, attention=attention, head=head, scores=scores)
