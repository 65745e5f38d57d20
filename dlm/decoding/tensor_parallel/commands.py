"""What rank 0 of a `ParallelDecoder` tells the others, besides None for a step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dlm.decoding.request import Request

GOES_ON, STOPS, FAILS = 0, 1, 2
"""What `should_stop` said in rank 0."""


class Command(Enum):
    """That which has no content."""

    DROP = "drop"
    CLOSE = "close"


@dataclass(frozen=True)
class AddRequest:
    """A request that came.

    Attributes:
        request: without `should_stop`, with its seed.
        stops: whether it has `should_stop`.
        refusal: why it was refused; None where it was not.
    """

    request: Request
    stops: bool
    refusal: str | None = None


@dataclass(frozen=True)
class Cancellation:
    """A request that is to be forgotten."""

    request_id: str


class StopRuleFailed(Exception):
    """`should_stop` raised in rank 0."""
