"""Messages from rank 0 of a `ParallelDecoder` to the other ranks; None stands for a step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dlm.decoding.request import Request

GOES_ON, STOPS, FAILS = 0, 1, 2
"""Outcome of `should_stop` in rank 0."""


class Command(Enum):
    """Messages without content."""

    DROP = "drop"
    CLOSE = "close"


@dataclass(frozen=True)
class AddRequest:
    """A submitted request.

    Attributes:
        request: without `should_stop`, with its seed.
        stops: whether it has `should_stop`.
        refusal: why it was refused; None if accepted.
    """

    request: Request
    stops: bool
    refusal: str | None = None


@dataclass(frozen=True)
class Cancellation:
    """A request to cancel."""

    request_id: str


class StopRuleFailed(Exception):
    """`should_stop` raised in rank 0."""
