"""How much faster than the reference our decoder could be: arithmetic on operations, bytes and measured rates.

Each side is a list of forwards. The ideal time of a side is the sum over its forwards of

* its matmuls: the body for the positions recomputed, the head for the positions that get logits. One call costs
  max(flops / rate, bytes / bandwidth); the rate is what torch reaches for that very shape (rows of the call x width, in
  that dtype, on weights it has just used); bytes are the weights, the input and the output, once each;
* its attention: 4 x queries x keys x heads x head_dim flops a layer and window, at the rate of torch's attention for
  that shape, or the bytes of the keys and values, whichever takes longer;
* its scores: for the reference the argmax and the softmax of each row that it scores, for ours the maximum and the sum
  of exponentials of each row; seconds a row as torch takes them.

The reference's softmax is as its program has it: in float64 over every row of logits (LLaDA, Fast-dLLM), or over the
block's rows in float32 (dInfer) or in their own dtype (SDAR).

Norms, rotary embedding, activations, residuals, selection, Python and memory management cost nothing in either ideal.
The shapes are those of each program: one canvas a call and separate q, k, v, gate and up for the reference; the
packed windows of all canvases, rows rounded up to a multiple of `ROW_TILE`, and fused q/k/v and gate/up for ours.

    ceiling = ideal seconds of the reference / ideal seconds of ours
    ratio   = measured seconds of the reference / measured seconds of ours
    share   = ratio / ceiling

So a share of 1 means that what ours loses on top of its necessary work is, in proportion, what the reference loses.

Both sides reveal as many tokens a step by the same schedule, so the seconds are those of the same revealed tokens. The
forwards need not be the same in number: where a program prefills, stores a finished block or recomputes one in a call
of its own, ours does it in the next step's, or not at all.

Only dense, unshifted models have a reference; `dlm.bench.bounds.floor` is the yardstick of all others.

Knows no torch and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dlm.bench.workloads import Forward

Matmul = tuple[int, int]
"""Input and output width of a linear layer."""


class Rates(Protocol):
    """What the machine does, for one side and dtype."""

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""

    def matmul(self, rows: int, layer: Matmul) -> float:
        """Flops a second of a linear layer on so many rows."""

    def attention(self, queries: int, keys: int) -> float:
        """Flops a second of one canvas's attention."""

    def score_row(self) -> float:
        """Seconds for the scores of one row of logits."""


@dataclass(frozen=True)
class ForwardShape:
    """What of a model costs time.

    Attributes:
        layer_matmuls: linear layers of one layer, as this side calls them.
        num_layers, head: how many layers, and the LM head.
        query_width, key_width: values of all query heads, and of all key heads, of one position.
        itemsize: bytes of a number.
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
        """Rows of the call that computes `rows` rows."""
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
    """The time that the necessary work of these forwards takes."""
    body = attention = head = scores = 0.0
    for forward in forwards:
        layer = sum(matmul_seconds(forward.rows, matmul, shape, rates) for matmul in shape.layer_matmuls)
        body += shape.num_layers * layer
        attention += shape.num_layers * attention_seconds(forward.windows, shape, rates)
        head += matmul_seconds(forward.head_rows, shape.head, shape, rates)
        scores += forward.score_rows * rates.score_row()
    return Seconds(matmul=body, attention=attention, head=head, scores=scores)
