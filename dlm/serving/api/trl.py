"""The routes of TRL's `VLLMClient`: samples, log-probabilities of sequences, and weight updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from dlm.decoding.request import Completion
from dlm.likelihood.schemes import Ar
from dlm.serving.api.answers import Sample, finite
from dlm.serving.api.echo import Scoring, Scorings
from dlm.serving.api.openai import plain
from dlm.serving.api.probes import PROBES, health_of
from dlm.serving.api.sequence_logprobs import SequenceRow, arrays, check_sequences, lists
from dlm.serving.api.trl_channel import Channel
from dlm.serving.engine.served_weights import ServedWeights
from dlm.serving.engine.service import PreparedRequest, Service
from dlm.serving.http.bodies import body_route
from dlm.serving.http.disconnect import until_gone
from dlm.serving.http.errors import ApiError
from dlm.serving.schemas.control_requests import (
    CommunicatorRequest,
    ConversationsRequest,
    GenerateRequest,
    ParameterRequest,
    Sampled,
    SequencesRequest,
)
from dlm.serving.schemas.control_responses import BinaryLogprobs, SequenceLogprobs, Sequences, Told, WorldSize
from dlm.serving.schemas.openapi import OF_BODIES, OF_CHANGES, OF_DECODING, responses
from dlm.serving.schemas.unsupported_params import NEUTRAL, refuse_foreign

PATHS = (
    "/get_world_size/", "/generate/", "/chat/", "/get_sequence_logprobs/", "/init_communicator/",
    "/update_named_param/", "/reset_prefix_cache/", "/close_communicator/",
)  # fmt: skip
"""Paths that require the key."""
DEFAULTS = {"temperature": 1.0}
MAX_TOKENS = 16
"""TRL's default."""
FOREIGN = {
    **NEUTRAL, "images": ([],), "structured_outputs_regex": (), "guided_decoding_regex": (), "tools": ([],),
    "chat_template_kwargs": ({},), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
}  # fmt: skip
"""By field: values without effect."""


def trl_routes(service: Service, weights: ServedWeights) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["TRL's client"], route_class=body_route(service.bodies))
    channel = Channel(weights)

    @router.get("/health/", responses=PROBES)
    async def health() -> Response:
        return health_of(service)

    @router.get("/get_world_size/", response_model=None, responses=responses(WorldSize))
    async def get_world_size() -> dict[str, int]:
        return {"world_size": 1}

    @router.post("/generate/", response_model=None, responses=responses(Sequences, *OF_DECODING))
    async def generate(body: GenerateRequest, request: Request) -> dict[str, Any]:
        return await sampled(body, request, body.prompts, "prompts", chat=False)

    @router.post("/chat/", response_model=None, responses=responses(Sequences, *OF_DECODING))
    async def chat(body: ConversationsRequest, request: Request) -> dict[str, Any]:
        conversations = [[plain(index, one) for index, one in enumerate(each)] for each in body.messages]
        return await sampled(body, request, conversations, "messages", chat=True)

    async def sampled(
        body: Sampled, request: Request, prompts: Sequence[Any], field: str, *, chat: bool
    ) -> dict[str, Any]:
        if not prompts or not all(prompts):
            raise ApiError(400, f"{field} is empty or contains an empty one; send at least one", param=field)
        given, limit, logprobs = wishes(service, body)
        params = service.defaults.params(given, limit, record=logprobs)
        prepared = [await service.in_text_thread(service.prepare, prompt, params, chat=chat) for prompt in prompts]
        prepared = [replace(one, request=replace(one.request, token_stats=logprobs)) for one in prepared]
        await channel.settled()
        with service.call(prepared) as call:
            completions = await until_gone(request, call.completions())
        end_ids = service.thread.decoder.special.end_ids
        rows = []
        for index, (one, each) in enumerate(zip(prepared, completions, strict=True)):
            for count, completion in enumerate(each):
                sample = Sample.of(completion, one, service.codec, call.weight_versions[index])
                service.metrics.count_answer(0 if count else sample.prompt_tokens, len(sample.token_ids), sample.nfe)
                rows.append(shown(completion, sample, one, end_ids))
        return {
            "prompt_ids": [list(one.request.prompt_ids) for one in prepared],
            "completion_ids": [ids for ids, _ in rows],
            "logprobs": [[[finite(value)] for value in values] for _, values in rows] if logprobs else None,
            "logprob_token_ids": [[[token] for token in ids] for ids, _ in rows] if logprobs else None,
            "weight_version": min(call.weight_versions.values()),
        }

    logprobs_told = responses(SequenceLogprobs | BinaryLogprobs, *OF_DECODING)

    @router.post("/get_sequence_logprobs/", response_model=None, responses=logprobs_told)
    async def get_sequence_logprobs(body: SequencesRequest, request: Request) -> dict[str, Any]:
        await service.in_text_thread(check_sequences, service, body)
        scored = [
            (ids, max(1, length)) for ids, length in zip(body.sequences, body.prompt_lengths, strict=True)
            if max(1, length) < len(ids)
        ]  # fmt: skip
        slices = [
            await service.in_text_thread(Scoring(Ar(), length, 0).slices, service.likelihood.score_in_slices, ids)
            for ids, length in scored
        ]
        await channel.settled()
        scorings = Scorings(service.thread, slices)
        found = iter(await until_gone(request, scorings.results(service.settings.request_timeout)))
        rows = [
            SequenceRow.of(ids, length, next(found) if max(1, length) < len(ids) else None)
            for ids, length in zip(body.sequences, body.prompt_lengths, strict=True)
        ]
        version = min(scorings.weight_versions, default=service.thread.weight_version)
        return (arrays if body.response_format == "binary" else lists)(rows) | {"weight_version": version}

    @router.post("/init_communicator/", response_model=None, responses=responses(Told, *OF_CHANGES))
    async def init_communicator(body: CommunicatorRequest) -> dict[str, str]:
        await channel.open(body.host, body.port, body.world_size, body.backend)
        return {"message": "Request received, initializing communicator"}

    @router.post("/update_named_param/", response_model=None, responses=responses(Told, *OF_CHANGES))
    async def update_named_param(body: ParameterRequest) -> dict[str, str]:
        await channel.expect(body.name, body.dtype, body.shape)
        return {"message": "Request received, updating named parameter"}

    @router.post("/reset_prefix_cache/", response_model=None, responses=responses(Told, *OF_CHANGES))
    async def reset_prefix_cache() -> dict[str, str]:
        await channel.settled()
        await weights.finish()
        return {"message": "Request received, resetting prefix cache status: True"}

    @router.post("/close_communicator/", response_model=None, responses=responses(Told, *OF_BODIES))
    async def close_communicator() -> dict[str, str]:
        await channel.close()
        return {"message": "Request received, closing communicator"}

    return router


def wishes(service: Service, body: Sampled) -> tuple[dict[str, Any], int, bool]:
    """Options of a body: fields of `SamplingParams`, the token limit, and whether to return log-probabilities.

    Raises `ApiError` (400) naming the unsupported option.
    """
    given, limit, logprobs = {**DEFAULTS, **service.given(body)}, body.max_tokens, body.logprobs
    refuse_foreign({**body.unknown, "tools": body.tools}, FOREIGN)
    over = body.generation_kwargs
    if over is not None:
        refuse_foreign(over.unknown, FOREIGN)
        for name in over.unknown:
            if name not in FOREIGN:
                raise ApiError(400, f"generation_kwargs.{name:.80} is unknown here; leave it out", param=name[:80])
        given |= over.sampling()
        limit = limit if over.max_tokens is None else over.max_tokens
        logprobs = over.logprobs if "logprobs" in over.model_fields_set else logprobs
    if logprobs not in (None, 0):
        raise ApiError(
            400, f"logprobs={logprobs} must be 0 or null: only the chosen token's is recorded", param="logprobs"
        )
    return given, MAX_TOKENS if limit is None else limit, logprobs is not None


def shown(
    completion: Completion, sample: Sample, prepared: PreparedRequest, end_ids: Sequence[int]
) -> tuple[list[int], list[float]]:
    """The tokens of a sample, including the end token that stopped it, as TRL expects, and their log-probabilities."""
    count, limit = len(sample.token_ids), prepared.params.max_tokens
    tokens = list(sample.token_ids)
    ended = count == len(completion.token_ids) < len(completion.canvas_ids) and sample.finish_reason == "stop"
    if ended and completion.canvas_ids[count] in end_ids and (limit is None or count < limit):
        tokens.append(completion.canvas_ids[count])
    values = completion.logprobs_processed
    return tokens, [] if values is None else list(values[: len(tokens)])
