"""Model inputs and the rows to read for scoring given tokens. Plain values on the host; knows no torch.

For a bidirectional model, each window is a whole canvas. For a model with blocks, a window is one block, which sees the
clean tokens before it: these form the stream, computed once for all windows that see it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlm.decoding.layout import IntArray


@dataclass(frozen=True)
class ScoringWindow:
    """One window, and the tokens predicted from it.

    Attributes:
        inputs: `[rows]` int64, the window's tokens, including masks; empty if all reads are in the stream.
        start: position of its first row. It sees the stream up to there, and itself.
        reads: `[m]` int64, positions whose rows predict the targets: in the window from `start` on, in the stream
            before.
        targets: `[m]` int64, the tokens to score.
    """

    inputs: IntArray
    start: int
    reads: IntArray
    targets: IntArray


@dataclass(frozen=True)
class ScoringBatch:
    """Windows that share a stream.

    Attributes:
        stream: `[length]` int64, the clean tokens from position 0 that precede the windows.
        edges: where the stream is split, ascending from 0 to its length: each part sees itself and those before it.
            Windows start at edges.
        causal: a token of the stream sees only itself and those before it.
        views: the windows, in the order of the results.
    """

    stream: IntArray
    edges: tuple[int, ...]
    causal: bool
    views: tuple[ScoringWindow, ...]
