"""Bodies of requests. Unknown fields pass, because routers and clients add their own; those that ask for what there is
not are refused by `dlm.serving.foreign`. Null counts as not given.

Every body has, besides its own fields, those of `dlm.sampling.SamplingParams`, which also says what they mean;
`generation_algorithm` is its `algorithm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import create_model as create

from dlm.sampling import SamplingParams

Real = StrictInt | StrictFloat
Strings = StrictStr | Annotated[list[StrictStr], Field(max_length=16)]
Prompt = StrictStr | list[StrictInt]

OURS = ("max_tokens", "record")
"""Fields of `SamplingParams` that no body has as they are: the limit is each protocol's own, records are ours."""

EVERY_TOKEN = -1
"""What other servers' clients send as `top_k` when they want none."""

STRICT: Mapping[Any, Any] = {int: StrictInt, float: Real, str: StrictStr, bool: StrictBool}


class Body(BaseModel):
    """What all bodies share."""

    model_config = ConfigDict(extra="allow")

    @property
    def unknown(self) -> dict[str, Any]:
        """The fields that are not ours."""
        return self.__pydantic_extra__ or {}

    def sampling(self) -> dict[str, Any]:
        """The fields of `SamplingParams` that were given."""
        values = {name: getattr(self, name) for name in SAMPLING}
        if values["top_k"] == EVERY_TOKEN:
            values["top_k"] = 0
        return {name: value for name, value in values.items() if value is not None}


def _sampling() -> dict[str, Any]:
    found: dict[str, Any] = {}
    hints = get_type_hints(SamplingParams)
    for one in fields(SamplingParams):
        if one.name in OURS:
            continue
        kinds = getattr(hints[one.name], "__args__", (hints[one.name],))
        kind = Strings if one.name == "stop" else STRICT[next(kind for kind in kinds if kind is not type(None))]
        alias = AliasChoices("generation_algorithm", "algorithm") if one.name == "algorithm" else None
        found[one.name] = (kind | None, Field(None, validation_alias=alias))
    return found


SAMPLING = _sampling()
"""Names and types of the fields that say how an answer is decoded."""

Kind = TypeVar("Kind", bound=Body)


def decodes(kind: type[Kind]) -> type[Kind]:
    """`kind` with the fields of `SAMPLING`."""
    made: type[Kind] = create(kind.__name__, __base__=kind, __module__=__name__, __doc__=kind.__doc__, **SAMPLING)
    return made


class StreamOptions(Body):
    """OpenAI's."""

    include_usage: StrictBool | None = None


class ResponseFormat(Body):
    """OpenAI's; `text` is the only one there is."""

    type: StrictStr = "text"


class OpenAIBody(Body):
    """What chat and plain completions share. Those of the last block are refused unless they change nothing."""

    model: StrictStr | None = None
    max_tokens: StrictInt | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    dlm_events: StrictBool | None = Field(None, description="with stream: chunks tell what each forward revealed")

    frequency_penalty: Real | None = None
    presence_penalty: Real | None = None
    logit_bias: dict[str, Real] | None = None
    response_format: ResponseFormat | None = None


class Part(Body):
    """A part of a message's content; other types than text are refused by name."""

    type: StrictStr
    text: StrictStr | None = None


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: StrictStr | list[Part] | None = None


@decodes
class ChatRequest(OpenAIBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None


class ScoringRequest(BaseModel):
    """How a given text is scored; see `dlm.likelihood.schemes`."""

    model_config = ConfigDict(extra="forbid")

    scheme: StrictStr | None = Field(None, description="ar (the default), llada_mc, d1_onestep, coupled, block_causal")
    context_tokens: StrictInt | None = Field(None, description="tokens of the text that are given and not scored")
    mc_num: StrictInt | None = Field(None, description="draws of llada_mc, 1..1024; 128 where left out")
    seed: StrictInt | None = Field(None, description="of the masks; 0 where left out")


@decodes
class CompletionRequest(OpenAIBody):
    """`POST /v1/completions`."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    logprobs: StrictInt | None = None
    echo: StrictBool | None = None
    dlm: ScoringRequest | None = Field(None, description="with echo and logprobs: how the text is scored")
    best_of: StrictInt | None = None
    suffix: StrictStr | None = None


@decodes
class SubmitRequest(Body):
    """`POST /v1/generate`."""

    prompt: Prompt
    max_tokens: StrictInt | None = None


@decodes
class SubmitBatchRequest(Body):
    """`POST /v1/generate_batch`."""

    prompts: Annotated[list[Prompt], Field(min_length=1)]
    max_tokens: StrictInt | None = None
