"""What is fed to a model and read from it to score given tokens. Plain values on the host; knows no torch.

A bidirectional model is shown whole canvases, each a view by itself. A model with blocks is shown one block at a time,
which sees the clean tokens before it: those are the stream, computed once for all the views that see it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlm.decoding.layout import IntArray


@dataclass(frozen=True)
class ScoringWindow:
    """One window, and the tokens predicted from it.

    Attributes:
        inputs: `[rows]` int64, the window's tokens, masks among them; none where all that is read lies in the stream.
        start: position of its first row. It sees the stream up to there and itself.
        reads: `[m]` int64, positions whose rows predict the targets: the window's own from `start` on, the stream's
            before that.
        targets: `[m]` int64, the tokens to score.
    """

    inputs: IntArray
    start: int
    reads: IntArray
    targets: IntArray


@dataclass(frozen=True)
class ScoringBatch:
    """Views that share their stream.

    Attributes:
        stream: `[length]` int64, the tokens from position 0 that views see before themselves.
        edges: where the stream is cut, ascending from 0 to its length: a stretch sees itself and those before it.
            Views start at edges.
        causal: a token of the stream sees only those before it and itself.
        views: in the order in which results come.
    """

    stream: IntArray
    edges: tuple[int, ...]
    causal: bool
    views: tuple[ScoringWindow, ...]
