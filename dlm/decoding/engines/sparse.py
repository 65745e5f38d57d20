"""Attention to a retained share of the positions outside the block (Sparse-dLLM, arXiv 2508.02558; dLLM-Serve)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlm.decoding.engines.base import Engine
from dlm.decoding.params import check_real, check_whole
from dlm.decoding.types import CanvasState, Plan, Window
from dlm.errors import RequestError
from dlm.models.attention.segments import Retain


@dataclass(frozen=True)
class Sparse(Engine):
    """Per block: `delay_step` forwards of the whole canvas, one more in which each layer retains the keys and values of
    a share of the positions outside the block, then the block alone against those and itself.

    The arena holds only the retained share and the block.

    Attributes:
        retention_ratio: the retained share, 0..1.
        delay_step: forwards of a block before the one that selects.
        kernel_size: window of the max-pooling over scores, an odd number; 1 for none.
        head_select: each key/value head keeps its own highest-scoring positions (the same number for each); otherwise
            all heads keep the same ones, by mean score.
    """

    retention_ratio: float = 0.5
    delay_step: int = 1
    kernel_size: int = 3
    head_select: bool = True
    name: ClassVar[str] = "sparse"

    def __post_init__(self) -> None:
        check_real("retention_ratio", self.retention_ratio, 0.0, 1.0)
        check_whole("delay_step", self.delay_step, 0)
        check_whole("kernel_size", self.kernel_size, 1)
        if self.kernel_size % 2 == 0:
            raise RequestError(f"kernel_size={self.kernel_size} must be odd, to be centred on a position")

    def _retained(self, canvas: CanvasState, block_length: int) -> int:
        return int((canvas.length - block_length) * self.retention_ratio)

    def slots(self, canvas: CanvasState) -> int:
        lengths = {block.stop - block.start for block in canvas.blocks}
        return max(self._retained(canvas, length) + length for length in lengths)

    def plan(self, canvas: CanvasState) -> Plan:
        start, stop = canvas.block_start, canvas.block_stop
        count = self._retained(canvas, stop - start)
        if canvas.block_forwards < self.delay_step:
            return Plan((Window(0, canvas.length),))
        if canvas.block_forwards == self.delay_step:
            retain = Retain(start, stop, count, self.kernel_size, self.head_select) if count else None
            return Plan((Window(0, canvas.length, retain=retain),), phase="refresh")
        return Plan((Window(start, stop, count, count + stop - start),), phase="reuse")
