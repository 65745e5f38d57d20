"""What is submitted to the decoder's thread, its statistics, and why a submission is refused: plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dlm.decoding.request import Completion, Request

OnDone = Callable[[Completion], None]
"""Called in the decoder's thread with each sample's completion; one with `error` is the request's last."""
OnResult = Callable[[Any, Exception | None], None]
"""Called in the decoder's thread with a result, or the exception that there is instead."""


class QueueFull(Exception):
    """More sequences would wait than may."""


class Draining(Exception):
    """The server takes no new requests."""


class Unavailable(Exception):
    """Nothing is computed with the model now; the message says why and what to do."""


class Aborted(Exception):
    """What was asked for was given up before it was finished; the message says why."""


class EnginePaused(Exception):
    """A task wants the model to itself, and what is paused in mid-generation does not end."""


@dataclass
class QueuedRequest:
    """A submitted request.

    Attributes:
        request: what to decode.
        on_done: called with each completion.
        arrived: `time.monotonic()` when it came.
        left: samples without a completion.
    """

    request: Request
    on_done: OnDone
    arrived: float
    left: int


@dataclass
class EngineTask:
    """Something else to compute with the model, a slice between two steps.

    Attributes:
        slices: each `next` computes one and gives None, the last one the result.
        on_done: called with the result.
        begun: a slice was computed.
    """

    slices: Iterator[Any]
    on_done: OnResult
    begun: bool = False


@dataclass
class EngineStats:
    """How busy the decoder is; a copy that nobody changes.

    Attributes:
        waiting, running: sequences.
        steps, canvases: forwards made, and canvases summed over them.
        sizes: how many forwards held each number of canvases.
        arena_used, arena_slots: of the key/value memory.
        alive: the thread runs.
        refusal: why requests are refused now; None where they are taken.
    """

    waiting: int = 0
    running: int = 0
    steps: int = 0
    canvases: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    arena_used: int = 0
    arena_slots: int = 0
    alive: bool = False
    refusal: str | None = None
