"""Which window of a canvas to recompute. An engine is a value: no loop, no model, no tensor.

The window of the next step follows from where the canvas stands; everything outside it is read from the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from dlm.decoding.canvas import Canvas


@dataclass(frozen=True)
class Window:
    """Canvas positions `[start, stop)` to recompute.

    Attributes:
        start, stop: the query range.
        cached: attend to the whole canvas as the arena holds it after this window has been written there; otherwise
            the window attends to itself alone and must be the whole canvas.
        keep: write the window's keys and values into the arena.
    """

    start: int
    stop: int
    cached: bool
    keep: bool


class Engine(Protocol):
    """Names the window of each step."""

    name: ClassVar[str]
    uses_cache: ClassVar[bool]

    def window(self, canvas: Canvas) -> Window:
        """The window of the canvas's next step; always holds every masked position of the active block."""


@dataclass(frozen=True)
class Full:
    """The whole canvas at every step (LLaDA's `generate`)."""

    name: ClassVar[str] = "full"
    uses_cache: ClassVar[bool] = False

    def window(self, canvas: Canvas) -> Window:
        return Window(0, canvas.length, cached=False, keep=False)


@dataclass(frozen=True)
class PrefixCache:
    """The canvas at a block's first step, then from the block's start to the end (Fast-dLLM, arXiv 2505.22618)."""

    name: ClassVar[str] = "prefix_cache"
    uses_cache: ClassVar[bool] = True

    def window(self, canvas: Canvas) -> Window:
        if canvas.block_steps == 0:
            return Window(0, canvas.length, cached=False, keep=True)
        return Window(canvas.block_start, canvas.length, cached=True, keep=True)


@dataclass(frozen=True)
class DualCache:
    """The whole canvas at a block's first step, then the block alone (Fast-dLLM, arXiv 2505.22618)."""

    name: ClassVar[str] = "dual_cache"
    uses_cache: ClassVar[bool] = True

    def window(self, canvas: Canvas) -> Window:
        if canvas.block_steps == 0:
            return Window(0, canvas.length, cached=False, keep=True)
        return Window(canvas.block_start, canvas.block_stop, cached=True, keep=True)


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Full, PrefixCache, DualCache)}
