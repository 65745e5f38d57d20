"""Packs scoring windows end to end into batches of bounded size, without padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dlm.decoding.layout import IntArray
from dlm.likelihood.windows import ScoringBatch, ScoringWindow
from dlm.models.attention.segments import Segment

KEYS_PER_ROW = 16
"""Copied keys that count as one row of a batch, so that copies of long streams do not outgrow its activations."""

Piece = tuple[ScoringBatch, list[ScoringWindow]]
"""Windows of one `ScoringBatch` that go into the same forward."""


@dataclass
class ScoringForward:
    """One packed forward.

    Attributes:
        token_ids, positions: `[rows]` int64, each token and its position in its canvas.
        segments: its windows; a `key_start` is an index into `seen`.
        seen: `[keys]` int64, rows of the batch whose keys windows see besides their own, window by window.
        reads, targets: `[m]` int64, the predicting rows, and the tokens to score.
    """

    token_ids: IntArray
    positions: IntArray
    segments: list[Segment]
    seen: IntArray
    reads: IntArray
    targets: IntArray


@dataclass
class _BatchBuilder:
    """Builds one `ScoringForward`."""

    token_ids: list[IntArray] = field(default_factory=list)
    positions: list[IntArray] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    seen: list[IntArray] = field(default_factory=list)
    reads: list[IntArray] = field(default_factory=list)
    targets: list[IntArray] = field(default_factory=list)
    rows: int = 0
    keys: int = 0

    def window(self, tokens: IntArray, start: int, key_start: int | None = None, keys: int = 0, *, causal: bool) -> int:
        """Append a window; returns its first row."""
        row = self.rows
        self.segments.append(Segment(row, len(tokens), key_start=key_start, num_keys=keys, causal=causal))
        self.token_ids.append(tokens)
        self.positions.append(np.arange(start, start + len(tokens)))
        self.rows += len(tokens)
        return row

    def see(self, *spans: tuple[int, int]) -> int:
        """Append the keys of rows `[first, first + count)` of each span; returns their start in `seen`."""
        at = self.keys
        self.seen += [np.arange(first, first + count) for first, count in spans]
        self.keys += sum(count for _, count in spans)
        return at

    def add(self, sheet: ScoringBatch, views: Sequence[ScoringWindow]) -> None:
        """Append the part of the sheet's stream that the windows see, and the windows."""
        length, stream = max(view.start for view in views), self.rows
        key_start = self.see((stream, length)) if length else 0
        for start, stop in itertools.pairwise(edge for edge in sheet.edges if edge <= length):
            self.window(sheet.stream[start:stop], start, key_start, stop, causal=sheet.causal)
        for view in views:
            row, rows, start = self.rows, len(view.inputs), view.start
            if rows and start:
                keys = self.see((stream, start), (row, rows))
                self.window(view.inputs, start, keys, start + rows, causal=False)
            elif rows:
                self.window(view.inputs, start, causal=False)
            self.reads.append(np.where(view.reads < start, stream, row - start) + view.reads)
            self.targets.append(view.targets)

    def batch(self) -> ScoringForward:
        """The finished forward."""
        seen = np.concatenate(self.seen) if self.seen else np.zeros(0, dtype=np.int64)
        return ScoringForward(
            np.concatenate(self.token_ids),
            np.concatenate(self.positions),
            self.segments,
            seen,
            np.concatenate(self.reads),
            np.concatenate(self.targets),
        )


def pack(sheets: Iterable[ScoringBatch], max_tokens: int) -> Iterator[ScoringForward]:
    """Batches in the order of the windows, each as full as possible.

    A stream is repeated in each batch with windows of its sheet, as far as they see it.

    Args:
        sheets: windows to forward.
        max_tokens: rows of a batch, including copied keys (`KEYS_PER_ROW`); a window that needs more runs alone.
    """
    pieces: list[Piece] = []
    cost = 0
    for sheet in sheets:
        laid = 0
        for view in sheet.views:
            price = _price(view, laid)
            if pieces and cost + price > max_tokens:
                yield _laid_out(pieces)
                pieces, cost, laid = [], 0, 0
                price = _price(view, laid)
            if not pieces or pieces[-1][0] is not sheet:
                pieces.append((sheet, []))
            pieces[-1][1].append(view)
            cost += price
            laid = max(laid, view.start)
    if pieces:
        yield _laid_out(pieces)


def _price(view: ScoringWindow, laid: int) -> int:
    """Rows that a window adds to a batch that has its stream up to `laid`."""
    copied = view.start + len(view.inputs) if view.start else 0
    return len(view.inputs) + max(0, view.start - laid) + copied // KEYS_PER_ROW


def _laid_out(pieces: Sequence[Piece]) -> ScoringForward:
    layout = _BatchBuilder()
    for sheet, views in pieces:
        layout.add(sheet, views)
    return layout.batch()
