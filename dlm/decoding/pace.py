"""How far the program that an algorithm comes from would be: it also makes forwards on blocks that are finished.

dInfer looks whether a block is finished only after a number of iterations, and makes an ordinary forward right after
each one that fills the cache. Its warm-up and its smoothing count those forwards; here they are counted and not made.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlm.decoding.engines.base import Phase, Unroll


@dataclass
class Pace:
    """Where the program stands with one canvas.

    Attributes:
        forwards: made so far, by the program's count.
        left: iterations before it looks again whether the block is finished.
        pending: the iteration has filled the cache and its ordinary forward is due.
        has_cache: the cache was filled once.
        tested: the last block whose novelty was tested, which happens only where there is a cache.
    """

    forwards: int = 0
    left: int = 0
    pending: bool = False
    has_cache: bool = False
    tested: int = 0

    def begin(self, masks: int, unroll: Unroll) -> None:
        """The next forward is due; where the program looks at the block first, it finds `masks`."""
        if self.left <= 0 and not self.pending:
            self.left = max(1, min(masks // unroll.expected_tpf, unroll.maximum))

    def advance(self, phase: Phase, block_index: int) -> None:
        """One forward was made."""
        if self.has_cache and not self.pending and phase != "whole":
            self.tested = block_index
        self.forwards += 1
        if phase == "refresh":
            self.has_cache = self.pending = True
        else:
            self.pending = False
            self.left -= 1

    @property
    def idles(self) -> bool:
        """Whether the program would make another forward before it looks at the block."""
        return self.pending or self.left > 0
