"""Forwards of fixed shape, for recording: buffers that hold any batch of a kind, and attention over them.

A batch whose windows all attend to the arena is filled up to a `FrameShape`: rows with token 0, which form windows of
their own. Those write to one spare slot of the arena and attend to that slot alone, so that they are finite and no
other row sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlm.models.attention.kernels import VarlenKernel
from dlm.models.attention.segments import Segment
from dlm.models.attention.varlen import cumulative, spans
from dlm.models.devices import upload

LEAST_ROWS, LEAST_SEGMENTS, LEAST_KEYS = 16, 4, 256
ROW_STEPS = 8


@dataclass(frozen=True)
class FrameShape:
    """How much a frame holds.

    Attributes:
        rows: of the batch.
        segments: windows, those of the rows that fill up included.
        keys: gathered keys; 0 where the kernel reads them in place.
        longest_query, longest_keys: rows and keys of one window.
        drafts: whether some rows draft (`dlm.models.lora.drafter`).
    """

    rows: int
    segments: int
    keys: int
    longest_query: int
    longest_keys: int
    drafts: bool = False

    @classmethod
    def of(cls, segments: Sequence[Segment], *, in_place: bool, drafts: bool = False) -> FrameShape:
        """The shape that a batch is filled up to. There are few: eight to a doubling of rows, four to a doubling of
        gathered keys, powers of two of the rest."""
        num_rows = segments[-1].row + segments[-1].rows
        rows = rounded_up(num_rows, LEAST_ROWS, ROW_STEPS)
        longest_query = rounded_up(max(s.rows for s in segments), LEAST_ROWS, 1)
        count = rounded_up(len(segments) + -(-(rows - num_rows) // longest_query), LEAST_SEGMENTS, 1)
        num_keys = sum(s.num_keys for s in segments) + count - len(segments)
        keys = 0 if in_place else rounded_up(num_keys, LEAST_KEYS, 4)
        longest_keys = rounded_up(max(s.num_keys for s in segments), LEAST_KEYS, 1)
        return cls(rows, count, keys, longest_query, longest_keys, drafts)


def rounded_up(number: int, least: int, parts: int) -> int:
    """`number` rounded up to one of `parts` even steps from a power of two to the next, of `least` or more each."""
    number = max(number, least)
    step = max(least, (1 << (number - 1).bit_length()) // 2 // parts)
    return -(-number // step) * step


def frame_rows(most: int) -> list[int]:
    """The rows that frames for batches of up to `most` rows have, ascending."""
    sizes = [LEAST_ROWS]
    while sizes[-1] < most:
        sizes.append(rounded_up(sizes[-1] + 1, LEAST_ROWS, ROW_STEPS))
    return sizes


class Frame:
    """The input buffers of one shape on a device. They lie in one block, so that a batch takes one transfer.

    Args:
        shape: what they hold.
        spare: arena slot that rows which fill up may write and read.
        device: where the model is.

    Attributes:
        token_ids, positions: `[rows]` int64.
        slots: `[rows]` int64, where each row's key and value go.
        queries: `[segments + 1]` int32, cumulative lengths.
        keys: the same of the gathered keys, or where each range begins.
        used: `[segments]` int32, lengths of the ranges; None where keys are gathered.
        drafts: `[rows]` bool, which rows draft; None where none does.
        gather: `[keys]` int64, arena slots of the keys laid end to end; None where they are read in place.
    """

    def __init__(self, shape: FrameShape, spare: int, device: torch.device) -> None:
        self.shape, self.spare = shape, spare
        half = shape.segments // 2 + 1  # int64 words that hold segments + 1 numbers of int32
        flags = -(-shape.rows // 8) if shape.drafts else 0  # words that hold a byte for each row
        self._sizes = [shape.rows, shape.rows, shape.rows, half, half, half, flags, shape.keys]
        self._words = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)
        parts = torch.split(self._words, self._sizes)
        self.token_ids, self.positions, self.slots = parts[:3]
        self.queries, self.keys = (part.view(torch.int32)[: shape.segments + 1] for part in parts[3:5])
        in_place = shape.keys == 0
        self.used = parts[5].view(torch.int32)[: shape.segments] if in_place else None
        self.drafts = parts[6].view(torch.bool)[: shape.rows] if shape.drafts else None
        self.gather = None if in_place else parts[7]

    def fill(
        self,
        segments: Sequence[Segment],
        token_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        drafts: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Put a batch in: windows that attend to the arena, and the tokens `[num_rows]` and places `[num_rows]` of
        their rows; where the frame is for drafts, which of them draft `[num_rows]`."""
        shape, count = self.shape, len(token_ids)
        host = np.zeros(sum(self._sizes), dtype=np.int64)
        tokens, places, slots, *numbers, flags, gather = np.split(host, np.cumsum(self._sizes[:-1]))
        queries, keys, used = (part.view(np.int32) for part in numbers)
        tokens[:count], places[:count] = token_ids, positions
        if drafts is not None:
            flags.view(np.bool_)[:count] = drafts
        slots[:] = self.spare
        for segment in segments:
            if segment.slot is not None:
                slots[segment.row : segment.row + segment.rows] = np.arange(segment.slot, segment.slot + segment.rows)
        ranges = [(s.key_start, s.num_keys) for s in segments if s.key_start is not None]
        more = shape.segments - len(segments)
        ranges += [(self.spare, 1)] * more
        lengths = [length for _, length in ranges]
        rows = cumulative([*(s.rows for s in segments), *[shape.longest_query] * more])
        queries[: shape.segments + 1] = np.minimum(rows, shape.rows)
        if self.gather is None:
            keys[: shape.segments + 1] = [*(start for start, _ in ranges), self.spare + 1]
            used[: shape.segments] = lengths
        else:
            keys[: shape.segments + 1] = cumulative(lengths)
            gather[:] = self.spare
            gather[: sum(lengths)] = spans(ranges)
        self._words.copy_(upload(host, self._words.device))


class FrameAttention:
    """Variable-length attention of whatever a frame holds when it is called: one kernel call for all windows.

    Args:
        frame: the buffers.
        kernel: what attends.
        keys, values: the arena, `[layers, slots, kv_heads, head_dim]`.
    """

    def __init__(self, frame: Frame, kernel: VarlenKernel, keys: Tensor, values: Tensor) -> None:
        self.frame, self.kernel, self.keys, self.values = frame, kernel, keys, values

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        frame, keys, values = self.frame, self.keys[layer], self.values[layer]
        keys.index_copy_(0, frame.slots, key)
        values.index_copy_(0, frame.slots, value)
        if frame.gather is not None:
            keys, values = keys[frame.gather], values[frame.gather]
        longest = frame.shape.longest_query, frame.shape.longest_keys
        return self.kernel(query, keys, values, frame.queries, frame.keys, *longest, causal=False, used=frame.used)
