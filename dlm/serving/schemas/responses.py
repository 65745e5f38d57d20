"""Response shapes, for `/openapi.json`. Responses are not built from these classes; the tests check that they match."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class Shape(BaseModel):
    """An object with exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Shape):
    """OpenAI's. `message` names what is wrong, its value and the remedy; `param` is the invalid field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Shape):
    """The body of every error."""

    error: ErrorDetail


class Status(Shape):
    """The server's status."""

    status: str


class Usage(Shape):
    """Tokens of the prompts, each counted once, and of the answers as returned."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class BatchFigures(BaseModel):
    """How an answer was decoded; more fields may be added."""

    nfe: int
    tokens_per_forward: float
    algorithm: str
    seed: int
    weight_version: int


class TokenLogprob(Shape):
    """One token; a null `logprob` is a probability of 0."""

    token: str
    logprob: float | None
    bytes: list[int]
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Shape):
    """Log-probabilities of the returned tokens, each at the forward that revealed it."""

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
    """Log-probabilities of the returned tokens; null is a probability of 0, or a token without context."""

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
    """All served names."""

    object: Literal["list"]
    data: list[Model]


class Parameter(Shape):
    """A request field. `of` is its owner: the request, or the algorithm's engine or sampler."""

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
    """A decoding algorithm; `reason` is why it is not available."""

    name: str
    aliases: list[str]
    engine: str
    sampler: str
    source: str
    available: bool
    reason: str | None
    parameters: list[Parameter]


class Catalogue(Shape):
    """Algorithms and parameters of this server; `parameters` are those of every request."""

    model: str
    default: str
    algorithms: list[Algorithm]
    parameters: list[Parameter]


class BatchStats(Shape):
    """Load of the decoder; requests are counted in samples, batches are forwards."""

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
    """Ids to poll with, in the order of the prompts: random numbers of more than 64 bits, which cannot be guessed."""

    request_ids: list[int]
    status: Literal["submitted"]


class Running(Shape):
    """A result that is not available yet."""

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
