"""Windows inside a packed batch: which rows form them, what they attend to, and which of their keys are kept.

Plain values, no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Retain:
    """Which keys outside a block stay (Sparse-dLLM, arXiv 2508.02558).

    Attributes:
        start, stop: the block's rows inside the window.
        count: how many of the other rows stay.
        pool: scores are max-pooled over so many neighbours, odd.
        per_head: each key/value head keeps its own positions; otherwise all keep the same.
    """

    start: int
    stop: int
    count: int
    pool: int
    per_head: bool


@dataclass(frozen=True)
class Segment:
    """One window inside a packed batch.

    Attributes:
        row: first row of the window in the batch.
        rows: length of the window.
        slot: arena slot to which the window's first key and value go; None keeps nothing.
        key_start: first arena slot that the window attends to; None attends to the window's own keys.
        num_keys: how many keys it attends to (`rows` when `key_start` is None).
        causal: the last row sees all keys, the one before it all but one, and so on.
        retain: of the window's own keys keep those outside the block that matter to it; they go to `slot`.
    """

    row: int
    rows: int
    slot: int | None = None
    key_start: int | None = None
    num_keys: int = 0
    causal: bool = False
    retain: Retain | None = None

    def through_arena(self) -> Segment | None:
        """The same window reading all its keys from the arena, after its own were kept there; None where it keeps none
        of them and attends to them, is causal, or thins them out."""
        if self.causal or self.retain is not None:
            return None
        if self.key_start is not None:
            return self
        return None if self.slot is None else replace(self, key_start=self.slot, num_keys=self.rows)


def packing_order(segment: Segment) -> tuple[bool, bool, int, int, int]:
    """Sort key for windows: those attending to themselves first, then by shape and address, so that runs form."""
    start = -1 if segment.key_start is None else segment.key_start
    return (start >= 0, segment.causal, segment.rows, segment.num_keys, start)
