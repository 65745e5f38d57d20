"""Bodies of the routes that change the weights, and of TRL's, which ask for answers too. Fields are their clients'."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from dlm.serving.protocol import Body, Message, Real, decodes

Version = Annotated[
    StrictStr | StrictInt | None, Field(None, description="a whole number; left out: one more than before")
]


class PauseRequest(Body):
    """`POST /pause_generation`."""

    mode: Literal["abort", "in_place", "retract"] | None = Field(
        None, description="abort (the default) gives all requests up, in_place lets them stand still; no other"
    )


class ChangeRequest(Body):
    """What the updates share."""

    weight_version: Version
    abort_all_requests: StrictBool | None = Field(None, description="give up what runs, instead of finishing it first")
    load_format: StrictStr | None = Field(None, description="auto or safetensors; both mean the same")


class DiskRequest(ChangeRequest):
    """`POST /update_weights_from_disk`."""

    model_path: StrictStr = Field(description="a folder that the server sees")
    keep_pause: StrictBool | None = Field(None, description="nothing is decoded afterwards until /continue_generation")
    is_async: StrictBool | None = Field(None, description="false: the answer comes when all is done")


class TensorRequest(ChangeRequest):
    """`POST /update_weights_from_tensor`."""

    serialized_named_tensors: list[StrictStr] = Field(description="safetensors files, each in base64")
    flush_cache: StrictBool | None = Field(None, description="true (the default): nothing else comes of this update")


class MemoryRequest(Body):
    """`POST /release_memory_occupation` and `POST /resume_memory_occupation`."""

    tags: list[StrictStr] | None = Field(None, description="weights, kv_cache; left out: both")


@decodes
class SamplingWishes(Body):
    """What `generation_kwargs` may hold: these fields win over those beside it. Others are refused."""

    max_tokens: StrictInt | None = None
    logprobs: StrictInt | None = None


class Sampled(Body):
    """What TRL's two ways to ask for answers share."""

    max_tokens: StrictInt | None = Field(None, description="16 where left out")
    logprobs: StrictInt | None = Field(0, description="0: of each token shown; null: none. No other")
    generation_kwargs: SamplingWishes | None = None
    tools: list[Any] | None = None


@decodes
class GenerateRequest(Sampled):
    """`POST /generate/`."""

    prompts: list[StrictStr] | list[list[StrictInt]]


@decodes
class ConversationsRequest(Sampled):
    """`POST /chat/`."""

    messages: list[list[Message]]


class SequencesRequest(Body):
    """`POST /get_sequence_logprobs/`."""

    sequences: list[list[StrictInt]]
    prompt_lengths: list[StrictInt]
    top_logprobs: StrictInt = Field(100, description="1: more than the most probable token is not told")
    temperature: Real | None = Field(None, description="1")
    response_format: Literal["json", "binary"] | None = None


class CommunicatorRequest(Body):
    """`POST /init_communicator/`."""

    host: StrictStr
    port: Annotated[StrictInt, Field(ge=1, le=65535)]
    world_size: StrictInt
    backend: StrictStr | None = Field(None, description="gloo, as dlm.rl.communicator.join says")


class ParameterRequest(Body):
    """`POST /update_named_param/`."""

    name: StrictStr
    dtype: StrictStr
    shape: list[StrictInt]
