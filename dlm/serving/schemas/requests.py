"""Request bodies. Unknown fields pass, because routers and clients add their own; unsupported options
are rejected by `dlm.serving.schemas.unsupported_params`. Null counts as unset.

Every text, list and number has a limit, wide enough for any sensible request, so that no body is slow to validate; the
code that uses a value checks its range.

Bodies that decode have, besides their own fields, those of `dlm.sampling_params.SamplingParams`, which documents them;
`generation_algorithm` is its `algorithm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import create_model as create

from dlm.sampling_params import SamplingParams

MOST_PROMPTS = 256
"""Maximum number of prompts, conversations or sequences in a request."""
MOST_SUBMITTED = 1024
"""Maximum number of prompts in a submitted batch."""

Whole = Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)]
Real = Annotated[StrictFloat, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
"""Finite; integers are accepted and converted to float here, so that none overflows later."""
Name = Annotated[StrictStr, Field(max_length=256)]
Text = Annotated[StrictStr, Field(max_length=2**22)]
Item = TypeVar("Item")
Items = Annotated[list[Item], Field(fail_fast=True)]
"""A list whose validation stops at the first invalid item. Each use sets its own length limit."""
Tokens = Annotated[Items[Whole], Field(max_length=2**20)]
Several = Annotated[Items[Item], Field(max_length=MOST_PROMPTS)]
Few = Annotated[Items[Item], Field(max_length=128)]
Stop = Annotated[StrictStr, Field(max_length=4096)]
Stops = Stop | Annotated[Items[Stop], Field(max_length=16)]
Prompt = Text | Tokens

OURS = ("max_tokens", "record")
"""Fields of `SamplingParams` not copied into bodies: each protocol has its own token limit; `record` is internal."""

EVERY_TOKEN = -1
"""Value of `top_k` that clients of other servers send to disable it."""

STRICT: Mapping[Any, Any] = {int: Whole, float: Real, str: Name, bool: StrictBool}


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="allow")

    @property
    def unknown(self) -> dict[str, Any]:
        """Unknown fields."""
        return self.__pydantic_extra__ or {}

    def sampling(self) -> dict[str, Any]:
        """The fields of `SamplingParams` that are set."""
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
        kind = Stops if one.name == "stop" else STRICT[next(kind for kind in kinds if kind is not type(None))]
        alias = AliasChoices("generation_algorithm", "algorithm") if one.name == "algorithm" else None
        found[one.name] = (kind | None, Field(None, validation_alias=alias))
    return found


SAMPLING = _sampling()
"""Names and types of the sampling fields."""

Kind = TypeVar("Kind", bound=Body)


def decodes(kind: type[Kind]) -> type[Kind]:
    """`kind` with the fields of `SAMPLING`."""
    made: type[Kind] = create(kind.__name__, __base__=kind, __module__=__name__, __doc__=kind.__doc__, **SAMPLING)
    return made


class StreamOptions(Body):
    """OpenAI's."""

    include_usage: StrictBool | None = None


class ResponseFormat(Body):
    """OpenAI's; only `text` is supported."""

    type: Name = "text"


class OpenAIBody(Body):
    """Common fields of chat and text completions. Those of the last block are rejected unless they have no effect."""

    model: Annotated[StrictStr, Field(max_length=4096)] | None = None
    max_tokens: Whole | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    dlm_events: StrictBool | None = Field(None, description="with stream: chunks report what each forward revealed")

    frequency_penalty: Real | None = None
    presence_penalty: Real | None = None
    logit_bias: Annotated[dict[Name, Any], Field(max_length=1024)] | None = None
    response_format: ResponseFormat | None = None


class ContentPart(Body):
    """A part of a message's content; types other than text are rejected by name."""

    type: Name
    text: Text | None = None


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[Items[ContentPart], Field(max_length=4096)] | None = None


Conversation = Annotated[Items[Message], Field(max_length=4096)]


@decodes
class ChatRequest(OpenAIBody):
    """`POST /v1/chat/completions`."""

    messages: Conversation
    max_completion_tokens: Whole | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Whole | None = None
    tools: Few[Any] | None = None
    functions: Few[Any] | None = None


class ScoringRequest(BaseModel):
    """How a text is scored; see `dlm.likelihood.schemes`."""

    model_config = ConfigDict(extra="forbid")

    scheme: Name | None = Field(None, description="ar (the default), llada_mc, d1_onestep, coupled, block_causal")
    context_tokens: Whole | None = Field(None, description="leading tokens of the text that are context and not scored")
    mc_num: Whole | None = Field(None, description="draws of llada_mc, 1..1024; default: 128")
    seed: Whole | None = Field(None, description="seed of the masks; default: 0")


@decodes
class CompletionRequest(OpenAIBody):
    """`POST /v1/completions`."""

    prompt: Text | Several[Text] | Tokens | Several[Tokens]
    logprobs: Whole | None = None
    echo: StrictBool | None = None
    dlm: ScoringRequest | None = Field(None, description="with echo and logprobs: how the text is scored")
    best_of: Whole | None = None
    suffix: Text | None = None


@decodes
class SubmitRequest(Body):
    """`POST /v1/generate`."""

    prompt: Prompt
    max_tokens: Whole | None = None


@decodes
class SubmitBatchRequest(Body):
    """`POST /v1/generate_batch`."""

    prompts: Annotated[Items[Prompt], Field(min_length=1, max_length=MOST_SUBMITTED)]
    max_tokens: Whole | None = None
