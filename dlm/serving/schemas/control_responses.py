"""Responses of the weight-control routes and of TRL's routes; the others are in `dlm.serving.schemas.responses`."""

from __future__ import annotations

from typing import Literal

from dlm.serving.schemas.responses import Shape


class Paused(Shape):
    """SGLang's response to pause and continue."""

    message: str
    status: Literal["ok"]


class Changed(Shape):
    """SGLang's response to weight updates and memory release or resume; the last two fields are extensions. `asleep`
    may contain `weights` and `kv_cache`."""

    success: Literal[True]
    message: str
    weight_version: int
    asleep: list[str]


class Told(Shape):
    """TRL's response of routes that return no data."""

    message: str


class WorldSize(Shape):
    """TRL's response: number of processes that receive weights."""

    world_size: int


class Sequences(Shape):
    """TRL's response with samples, grouped by prompt. For each returned token, its id and its log-probability at the
    forward that revealed it, after temperature, top-p and top-k; not an autoregressive likelihood."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    logprobs: list[list[list[float | None]]] | None
    logprob_token_ids: list[list[list[int]]] | None
    weight_version: int


class SequenceLogprobs(Shape):
    """TRL's response for given sequences: for each completion token, the most probable one and its log-probability."""

    logprobs: list[list[list[float | None]]]
    logprob_token_ids: list[list[list[int]]]
    weight_version: int


class BinaryLogprobs(Shape):
    """The same as base64 arrays of `shape`, float32 padded with -inf and int32 padded with 0; also for the given
    tokens."""

    logprobs_b64: str
    token_ids_b64: str
    actual_logprobs_b64: str
    actual_token_ids_b64: str
    shape: list[int]
    completion_lengths: list[int]
    weight_version: int
