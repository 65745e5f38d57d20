"""Packs the windows of all canvases in a step end to end into one batch, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dlm.decoding.canvas import Canvas
from dlm.decoding.layout import IntArray
from dlm.decoding.types import Window
from dlm.models.attention.segments import Segment, packing_order


@dataclass(frozen=True)
class Entry:
    """One window of a step, of a canvas or of its unconditional pair, which sees no prompt."""

    canvas: Canvas
    window: Window
    uncond: bool
    slot: int | None

    @property
    def rows(self) -> int:
        return self.window.stop - self.window.start

    def segment(self, row: int) -> Segment:
        """The window as rows `[row, row + rows)` of a packed batch."""
        window = self.window
        if self.slot is None:
            return Segment(row, self.rows)
        if window.retain is not None:
            return Segment(row, self.rows, self.slot, retain=window.retain)
        kept = None if window.place is None else self.slot + window.place
        if window.keys is None:
            return Segment(row, self.rows, kept)
        return Segment(row, self.rows, kept, self.slot, window.keys, window.causal)

    def token_ids(self) -> IntArray:
        window = slice(self.window.start, self.window.stop)
        tokens = self.canvas.tokens[window]
        return np.where(self.canvas.given[window], self.canvas.mask_id, tokens) if self.uncond else tokens


@dataclass
class Batch:
    """One packed forward.

    Attributes:
        entries, segments: its windows in row order.
        num_rows: total tokens.
    """

    entries: list[Entry] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    num_rows: int = 0
    _offsets: dict[tuple[int, bool], list[tuple[Window, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, canvases: Sequence[Canvas]) -> Batch:
        """The next windows of `canvases`."""
        entries = [
            Entry(canvas, window, bool(uncond), slot)
            for canvas in canvases
            for uncond, slot in enumerate(canvas.slots)
            for window in canvas.plan.windows
        ]
        batch = cls()
        for entry in sorted(entries, key=lambda entry: packing_order(entry.segment(0))):
            places = batch._offsets.setdefault((id(entry.canvas), entry.uncond), [])
            places.append((entry.window, batch.num_rows - entry.window.start))
            batch.entries.append(entry)
            batch.segments.append(entry.segment(batch.num_rows))
            batch.num_rows += entry.rows
        return batch

    def token_ids(self) -> IntArray:
        """`[num_rows]`."""
        return np.concatenate([entry.token_ids() for entry in self.entries])

    def positions(self) -> IntArray:
        """`[num_rows]`, each token's position in its canvas."""
        return np.concatenate([np.arange(entry.window.start, entry.window.stop) for entry in self.entries])

    def drafts(self) -> npt.NDArray[np.bool_] | None:
        """`[num_rows]`, which rows belong to drafting windows; None if none do."""
        if not any(entry.window.drafts for entry in self.entries):
            return None
        return np.repeat([entry.window.drafts for entry in self.entries], [entry.rows for entry in self.entries])

    def rows(self, canvas: Canvas, positions: IntArray, *, uncond: bool = False) -> IntArray:
        """Rows of the batch that predict the canvas's `positions`.

        If the plan is shifted, that is the row of the previous position; the first row of a window then also predicts
        itself.
        """
        places = self._offsets[id(canvas), uncond]
        if canvas.plan.shifted:
            first = min(window.start for window, _ in places)
            positions = np.maximum(positions - 1, first)
        rows = np.empty_like(positions)
        for window, offset in places:
            inside = (positions >= window.start) & (positions < window.stop)
            rows[inside] = positions[inside] + offset
        return rows
