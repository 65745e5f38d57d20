"""Shapes of what is answered, for `/openapi.json`. Answers are not made of them: the tests hold what is sent to what is
written here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class Shape(BaseModel):
    """An object with these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Shape):
    """OpenAI's. `message` names what is wrong, its value and the way out; `param` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Shape):
    """Every error."""

    error: ErrorDetail


class Status(Shape):
    """Of the server."""

    status: str


class Usage(Shape):
    """Tokens of the prompts, each counted once, and of the answers as they are shown."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class BatchFigures(BaseModel):
    """What an answer was made with; more may be added."""

    nfe: int
    tokens_per_forward: float
    algorithm: str
    seed: int
    weight_version: int


class TokenLogprob(Shape):
    """One token; null is a probability of 0."""

    token: str
    logprob: float | None
    bytes: list[int]
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Shape):
    """Of the shown tokens, each at the forward that revealed it."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(Shape):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Shape):
    """One of `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(Shape):
    """OpenAI's `chat.completion`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    dlm: BatchFigures


class TextLogprobs(Shape):
    """Of the shown tokens; null is a probability of 0 or a token that nothing predicts."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None
    text_offset: list[int]


class TextChoice(Shape):
    """One answer to one of the prompts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextAnswer(Shape):
    """OpenAI's `text_completion`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    dlm: BatchFigures


class Model(Shape):
    """A name under which the model is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    family: str


class ModelList(Shape):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class Parameter(Shape):
    """A field of a request. `of` is what it belongs to: the request, or the algorithm's engine or sampler."""

    name: str
    description: str
    type: Literal["integer", "number", "string", "boolean"]
    default: Any
    minimum: float | None
    exclusive_minimum: bool
    maximum: float | None
    choices: list[str] | None
    of: Literal["request", "engine", "sampler"]


class Algorithm(Shape):
    """A way to decode; `reason` says why it is not available."""

    name: str
    aliases: list[str]
    engine: str
    sampler: str
    source: str
    available: bool
    reason: str | None
    parameters: list[Parameter]


class Catalogue(Shape):
    """What can be asked of this server; `parameters` are those of every request."""

    model: str
    default: str
    algorithms: list[Algorithm]
    parameters: list[Parameter]


class BatchStats(Shape):
    """How busy the decoder is; requests are counted by their samples, batches are forwards."""

    max_batch_size: int
    max_wait_time: float
    pending_requests: int
    running_requests: int
    total_batches_processed: int
    avg_batch_size: float
    batch_size_histogram: dict[str, int]
    arena_slots_used: int
    arena_slots: int


class WorkerStats(Shape):
    """One worker."""

    index: int
    url: str
    healthy: bool
    requests_served: int
    errors: int
    running: int
    pending: int


class FleetStats(Shape):
    """All workers."""

    total_workers: int
    healthy_workers: int
    total_requests: int
    workers: list[WorkerStats]


class Tickets(Shape):
    """Ids to poll with, in the order of the prompts: drawn numbers of more than 64 bits, which nobody can guess."""

    request_ids: list[int]
    status: Literal["submitted"]


class Running(Shape):
    """A result that is not there yet."""

    request_id: int
    status: Literal["running"]
    text: None


class Failed(Shape):
    """A request without an answer."""

    request_id: int
    status: Literal["failed"]
    text: None
    error: ErrorDetail


class Finished(Shape):
    """An answer."""

    request_id: int
    status: Literal["finished"]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    nfe: int
    seed: int
    weight_version: int
    usage: Usage


Result = Running | Failed | Finished
