"""Bodies of the weight-control routes, and of TRL's routes. Field names are those of SGLang's and TRL's clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictStr

from dlm.serving.schemas.requests import (
    Body,
    Conversation,
    Few,
    Items,
    Name,
    Real,
    Several,
    Text,
    Tokens,
    Whole,
    decodes,
)

Version = Annotated[Name | Whole | None, Field(None, description="a whole number; default: one more than before")]


class PauseRequest(Body):
    """`POST /pause_generation`."""

    mode: Literal["abort", "in_place", "retract"] | None = Field(
        None, description="abort (the default) aborts all requests, in_place pauses them; retract is not supported"
    )


class ChangeRequest(Body):
    """Fields of all weight updates."""

    weight_version: Version
    abort_all_requests: StrictBool | None = Field(None, description="abort running requests; default: finish them")
    load_format: Name | None = Field(None, description="auto or safetensors; they are equivalent")


class DiskRequest(ChangeRequest):
    """`POST /update_weights_from_disk`."""

    model_path: Annotated[StrictStr, Field(max_length=4096)] = Field(description="a folder that the server can read")
    keep_pause: StrictBool | None = Field(None, description="stay paused afterwards until /continue_generation")
    is_async: StrictBool | None = Field(None, description="only false: respond once the update is complete")


Weights = Annotated[StrictStr, Field(max_length=2**36)]
"""Bounded in practice by `max_body_mib`."""


class TensorRequest(ChangeRequest):
    """`POST /update_weights_from_tensor`."""

    serialized_named_tensors: Annotated[Items[Weights], Field(max_length=4096)] = Field(
        description="safetensors files, each in base64"
    )
    flush_cache: StrictBool | None = Field(None, description="true (the default): no more tensors follow")


class MemoryRequest(Body):
    """`POST /release_memory_occupation` and `POST /resume_memory_occupation`."""

    tags: Few[Literal["weights", "kv_cache"]] | None = Field(None, description="default: both")


@decodes
class SamplingWishes(Body):
    """Fields of `generation_kwargs`; they override those of the body. Others are rejected."""

    max_tokens: Whole | None = None
    logprobs: Whole | None = None


class Sampled(Body):
    """Common fields of TRL's two generation routes."""

    max_tokens: Whole | None = Field(None, description="default: 16")
    logprobs: Whole | None = Field(0, description="0: of each returned token; null: none; no other value")
    generation_kwargs: SamplingWishes | None = None
    tools: Few[Any] | None = None


@decodes
class GenerateRequest(Sampled):
    """`POST /generate/`."""

    prompts: Several[Text] | Several[Tokens]


@decodes
class ConversationsRequest(Sampled):
    """`POST /chat/`."""

    messages: Several[Conversation]


class SequencesRequest(Body):
    """`POST /get_sequence_logprobs/`."""

    sequences: Several[Tokens]
    prompt_lengths: Several[Whole]
    top_logprobs: Whole = Field(100, description="must be 1: only the most probable token is returned")
    temperature: Real | None = Field(None, description="must be 1")
    response_format: Literal["json", "binary"] | None = None


class CommunicatorRequest(Body):
    """`POST /init_communicator/`."""

    host: Name
    port: Annotated[Whole, Field(ge=1, le=65535)]
    world_size: Whole
    backend: Name | None = Field(None, description="must be gloo, as sent by dlm.rl.weights.communicator.join")


class ParameterRequest(Body):
    """`POST /update_named_param/`."""

    name: Annotated[StrictStr, Field(max_length=4096)]
    dtype: Name
    shape: Few[Whole]
