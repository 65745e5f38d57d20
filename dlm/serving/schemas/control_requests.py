"""Bodies of the routes that change the weights, and of TRL's, which ask for answers too. Fields are their clients'."""

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

Version = Annotated[Name | Whole | None, Field(None, description="a whole number; left out: one more than before")]


class PauseRequest(Body):
    """`POST /pause_generation`."""

    mode: Literal["abort", "in_place", "retract"] | None = Field(
        None, description="abort (the default) gives all requests up, in_place lets them stand still; no other"
    )


class ChangeRequest(Body):
    """What the updates share."""

    weight_version: Version
    abort_all_requests: StrictBool | None = Field(None, description="give up what runs, instead of finishing it first")
    load_format: Name | None = Field(None, description="auto or safetensors; both mean the same")


class DiskRequest(ChangeRequest):
    """`POST /update_weights_from_disk`."""

    model_path: Annotated[StrictStr, Field(max_length=4096)] = Field(description="a folder that the server sees")
    keep_pause: StrictBool | None = Field(None, description="nothing is decoded afterwards until /continue_generation")
    is_async: StrictBool | None = Field(None, description="false: the answer comes when all is done")


Weights = Annotated[StrictStr, Field(max_length=2**36)]
"""As long as `max_body_mib` lets it be."""


class TensorRequest(ChangeRequest):
    """`POST /update_weights_from_tensor`."""

    serialized_named_tensors: Annotated[Items[Weights], Field(max_length=4096)] = Field(
        description="safetensors files, each in base64"
    )
    flush_cache: StrictBool | None = Field(None, description="true (the default): nothing else comes of this update")


class MemoryRequest(Body):
    """`POST /release_memory_occupation` and `POST /resume_memory_occupation`."""

    tags: Few[Literal["weights", "kv_cache"]] | None = Field(None, description="left out: both")


@decodes
class SamplingWishes(Body):
    """What `generation_kwargs` may hold: these fields win over those beside it. Others are refused."""

    max_tokens: Whole | None = None
    logprobs: Whole | None = None


class Sampled(Body):
    """What TRL's two ways to ask for answers share."""

    max_tokens: Whole | None = Field(None, description="16 where left out")
    logprobs: Whole | None = Field(0, description="0: of each token shown; null: none. No other")
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
    top_logprobs: Whole = Field(100, description="1: more than the most probable token is not told")
    temperature: Real | None = Field(None, description="1")
    response_format: Literal["json", "binary"] | None = None


class CommunicatorRequest(Body):
    """`POST /init_communicator/`."""

    host: Name
    port: Annotated[Whole, Field(ge=1, le=65535)]
    world_size: Whole
    backend: Name | None = Field(None, description="gloo, as dlm.rl.weights.communicator.join says")


class ParameterRequest(Body):
    """`POST /update_named_param/`."""

    name: Annotated[StrictStr, Field(max_length=4096)]
    dtype: Name
    shape: Few[Whole]
