"""The windows of all canvases that step together, laid end to end into one batch without a padded position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dlm.decoding.canvas import Canvas, IntArray
from dlm.decoding.engines import Window
from dlm.models.attention import Segment, packing_order


@dataclass(frozen=True)
class Entry:
    """One window of a step: of a canvas, or of its unconditional twin, which sees no prompt."""

    canvas: Canvas
    window: Window
    twin: bool
    slot: int | None

    @property
    def rows(self) -> int:
        return self.window.stop - self.window.start

    def segment(self, row: int) -> Segment:
        """The window as rows `[row, row + rows)` of a packed batch."""
        if self.slot is None:
            return Segment(row, self.rows)
        kept = self.slot + self.window.start if self.window.keep else None
        if self.window.cached:
            return Segment(row, self.rows, kept, self.slot, self.canvas.length)
        return Segment(row, self.rows, kept)

    def token_ids(self) -> IntArray:
        window = slice(self.window.start, self.window.stop)
        tokens = self.canvas.tokens[window]
        return np.where(self.canvas.given[window], self.canvas.mask_id, tokens) if self.twin else tokens

    def order(self) -> tuple[bool, int, int, int]:
        """Sort key that lets equal shapes lie together."""
        segment = self.segment(0)
        return packing_order(segment.rows, segment.num_keys, segment.key_start)


@dataclass
class Batch:
    """One packed forward.

    Attributes:
        entries, segments: its windows in row order.
        num_rows: tokens in all.
    """

    entries: list[Entry] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    num_rows: int = 0
    _offsets: dict[tuple[int, bool], int] = field(default_factory=dict)

    @classmethod
    def of(cls, canvases: Sequence[Canvas]) -> Batch:
        """The next windows of `canvases`."""
        entries = []
        for canvas in canvases:
            window = canvas.request.engine.window(canvas)
            entries += [Entry(canvas, window, bool(twin), slot) for twin, slot in enumerate(canvas.slots)]
        batch = cls()
        for entry in sorted(entries, key=Entry.order):
            batch._offsets[id(entry.canvas), entry.twin] = batch.num_rows - entry.window.start
            batch.entries.append(entry)
            batch.segments.append(entry.segment(batch.num_rows))
            batch.num_rows += entry.rows
        return batch

    def token_ids(self) -> IntArray:
        """`[num_rows]`."""
        return np.concatenate([entry.token_ids() for entry in self.entries])

    def positions(self) -> IntArray:
        """`[num_rows]`, each token's place in its canvas."""
        return np.concatenate([np.arange(entry.window.start, entry.window.stop) for entry in self.entries])

    def rows(self, canvas: Canvas, positions: IntArray, *, twin: bool = False) -> IntArray:
        """Rows of the batch where the canvas's `positions` stand."""
        return positions + self._offsets[id(canvas), twin]
