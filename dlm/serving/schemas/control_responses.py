"""Answers of the routes that change the weights, and of TRL's; `dlm.serving.schemas.responses` has the others."""

from __future__ import annotations

from typing import Literal

from dlm.serving.schemas.responses import Shape


class Paused(Shape):
    """SGLang's, of pause and continue."""

    message: str
    status: Literal["ok"]


class Changed(Shape):
    """SGLang's, of what changes the weights or where they are; the last two fields are ours. `asleep` holds `weights`
    and `kv_cache`."""

    success: Literal[True]
    message: str
    weight_version: int
    asleep: list[str]


class Told(Shape):
    """TRL's, of what has no other answer."""

    message: str


class WorldSize(Shape):
    """TRL's: processes that take weights from it."""

    world_size: int


class Sequences(Shape):
    """TRL's, of what was sampled, all samples of a prompt together. For each token shown the log-probability at the
    forward that revealed it, after temperature, top-p and top-k, with the token's id: no autoregressive likelihood."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    logprobs: list[list[list[float | None]]] | None
    logprob_token_ids: list[list[list[int]]] | None
    weight_version: int


class SequenceLogprobs(Shape):
    """TRL's, of given sequences: for each token of a completion the most probable one and its log-probability."""

    logprobs: list[list[list[float | None]]]
    logprob_token_ids: list[list[list[int]]]
    weight_version: int


class BinaryLogprobs(Shape):
    """The same as arrays in base64, float32 and int32 of `shape`, filled up with -inf and 0; and the given tokens'."""

    logprobs_b64: str
    token_ids_b64: str
    actual_logprobs_b64: str
    actual_token_ids_b64: str
    shape: list[int]
    completion_lengths: list[int]
    weight_version: int
