"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from dlm.serving.api.answers import EchoPrefix, Header, Sample, chat_answer, text_answer
from dlm.serving.api.chunks import Chunks
from dlm.serving.api.echo import Echo, Scoring, Scorings, estimates
from dlm.serving.engine.service import PreparedRequest, Service
from dlm.serving.http.bodies import body_route
from dlm.serving.http.disconnect import EventStream, until_gone
from dlm.serving.http.errors import ApiError
from dlm.serving.schemas.openapi import OF_DECODING, responses
from dlm.serving.schemas.requests import ChatRequest, CompletionRequest, Message, OpenAIBody, ScoringRequest
from dlm.serving.schemas.responses import ChatAnswer, TextAnswer
from dlm.serving.schemas.unsupported_params import refuse_foreign

ROLES = {"developer": "system"}
"""Roles to rename for chat templates."""


def openai_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=body_route(service.bodies))

    chat = responses(ChatAnswer, 404, *OF_DECODING, streams=True)
    text = responses(TextAnswer, 404, *OF_DECODING, streams=True)

    @router.post("/chat/completions", response_model=None, responses=chat)
    async def chat_completions(body: ChatRequest, request: Request) -> dict[str, Any] | Response:
        name = service.check_model(body.model)
        refuse_unsupported(body)
        if body.tools or body.functions:
            raise ApiError(400, "tools and functions are not supported; leave them out", param="tools")
        if body.top_logprobs:
            raise ApiError(400, "top_logprobs: only chosen tokens are recorded; leave it out", param="top_logprobs")
        limit = one_limit(body.max_tokens, body.max_completion_tokens)
        messages = [plain(index, message) for index, message in enumerate(body.messages)]
        if not messages:
            raise ApiError(400, "messages is empty; give at least one", param="messages")
        record = bool(body.logprobs) or bool(body.stream and body.dlm_events)
        params = service.defaults.params(service.given(body), limit, record=record)
        prepared = await service.in_text_thread(service.prepare, messages, params)
        header = Header(True, name)
        if body.stream:
            return stream(service, body, header, [prepared], with_logprobs=bool(body.logprobs))
        samples = await answers(service, request, [prepared])
        return chat_answer(header, samples[0], prepared, service.codec, with_logprobs=bool(body.logprobs))

    @router.post("/completions", response_model=None, responses=text)
    async def completions(body: CompletionRequest, request: Request) -> dict[str, Any] | Response:
        name = service.check_model(body.model)
        refuse_unsupported(body)
        if body.suffix:
            raise ApiError(400, "suffix is not supported; send token ids with mask ids to fill in", param="suffix")
        if body.best_of not in (None, 1, body.sampling().get("n")):
            raise ApiError(400, f"best_of={body.best_of} is not supported; use n instead", param="best_of")
        if body.logprobs is not None and not 0 <= body.logprobs <= 1:
            raise ApiError(400, f"logprobs={body.logprobs} must be 0 or 1 (chosen token)", param="logprobs")
        scoring = scoring_of(body)
        if body.stream and body.echo:
            raise ApiError(400, "echo does not work with stream=true; leave one of them out", param="echo")
        prompts = several(body.prompt)
        header = Header(False, name)
        given, limit, silent = service.given(body), body.max_tokens, scoring is not None and body.max_tokens == 0
        if silent:  # only the prompt is wanted: prepare the smallest valid request
            given, limit = {**given, "gen_length": 1, "n": 1}, 1
        record = body.logprobs is not None or bool(body.stream and body.dlm_events)
        params = service.defaults.params(given, limit, record=record)
        prepared = [await service.in_text_thread(service.prepare, prompt, params, chat=False) for prompt in prompts]
        with_logprobs = body.logprobs is not None
        if body.stream:
            return stream(service, body, header, prepared, with_logprobs=with_logprobs)
        echoes = None if scoring is None else await echoed(service, request, prepared, scoring)
        if silent:
            samples = [
                [Sample.none(one, each.weight_version)] for one, each in zip(prepared, echoes or (), strict=True)
            ]
        else:
            samples = await answers(service, request, prepared)
        leads = None
        if body.echo:
            leads = await service.in_text_thread(leading, service, prepared, echoes, best=bool(body.logprobs))
        answer = text_answer(header, samples, prepared, service.codec, with_logprobs=with_logprobs, leads=leads)
        if scoring is not None and echoes is not None:
            answer["dlm"]["likelihood"] = estimates(scoring, echoes)
        return answer

    return router


def scoring_of(body: CompletionRequest) -> Scoring | None:
    """How the prompt is scored; None if scoring is not requested. Raises `ApiError` (400)."""
    if body.echo and body.logprobs is not None:
        return Scoring.of(body.dlm or ScoringRequest.model_validate({}))
    if body.dlm is not None:
        raise ApiError(400, "dlm requires echo and logprobs; leave it out", param="dlm")
    return None


async def echoed(
    service: Service, request: Request, prepared: Sequence[PreparedRequest], scoring: Scoring
) -> list[Echo]:
    """The prompts with their log-probabilities; cancelled if the client disconnects."""
    texts = [one.request.prompt_ids for one in prepared]
    score = service.likelihood.score_in_slices
    slices = [await service.in_text_thread(scoring.slices, score, text) for text in texts]
    scorings = Scorings(service.thread, slices)
    found = await until_gone(request, scorings.results(service.settings.request_timeout))
    return [
        Echo(text, scoring.context_tokens, each, version)
        for text, each, version in zip(texts, found, scorings.weight_versions, strict=True)
    ]


def leading(
    service: Service, prepared: Sequence[PreparedRequest], echoes: Sequence[Echo] | None, *, best: bool
) -> list[EchoPrefix]:
    """The echoed prompts to prepend to the answers."""
    texts = [service.codec.decode(one.request.prompt_ids) for one in prepared]
    if echoes is None:
        return [EchoPrefix(text) for text in texts]
    return [EchoPrefix(text, each.logprobs(service.codec, best=best)) for text, each in zip(texts, echoes, strict=True)]


async def answers(service: Service, request: Request, prepared: Sequence[PreparedRequest]) -> list[list[Sample]]:
    """The samples of each prompt; cancelled if the client disconnects."""
    with service.call(prepared) as call:
        completions = await until_gone(request, call.completions())
    found = [
        [Sample.of(completion, one, service.codec, call.weight_versions[index]) for completion in each]
        for index, (one, each) in enumerate(zip(prepared, completions, strict=True))
    ]
    for each in found:
        for index, sample in enumerate(each):
            service.metrics.count_answer(0 if index else sample.prompt_tokens, len(sample.token_ids), sample.nfe)
    return found


def stream(
    service: Service, body: OpenAIBody, header: Header, prepared: Sequence[PreparedRequest], *, with_logprobs: bool
) -> Response:
    """The answer in chunks. Raises `ApiError` if the requests cannot be submitted."""
    options = body.stream_options
    call = service.call(prepared, watched=True)
    chunks = Chunks(
        service,
        header,
        prepared,
        events=bool(body.dlm_events),
        usage=bool(options and options.include_usage),
        logprobs=with_logprobs,
    )
    call.submit()
    pieces: AsyncIterator[str] = chunks.of(call)
    return EventStream(pieces, call)


def refuse_unsupported(body: OpenAIBody) -> None:
    """Raise `ApiError` (400) for unsupported options."""
    refuse_foreign(body.unknown)
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(body, name):
            raise ApiError(400, f"{name}={getattr(body, name)} is not supported; leave it out or set 0", param=name)
    if body.logit_bias:
        raise ApiError(400, "logit_bias is not supported; leave it out", param="logit_bias")
    if body.response_format is not None and body.response_format.type != "text":
        kind = body.response_format.type
        raise ApiError(400, f"response_format={kind!r} is not supported; use text", param="response_format")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options requires stream=true; leave it out", param="stream_options")
    if body.dlm_events and not body.stream:
        raise ApiError(400, "dlm_events requires stream=true; leave it out", param="dlm_events")


def one_limit(first: int | None, second: int | None) -> int | None:
    """`max_completion_tokens` if given, else `max_tokens`. Raises `ApiError` if they disagree."""
    if first is not None and second is not None and first != second:
        raise ApiError(
            400, f"max_tokens={first} and max_completion_tokens={second} disagree; give one of them",
            param="max_completion_tokens",
        )  # fmt: skip
    return second if first is None else first


def plain(index: int, message: Message) -> dict[str, str]:
    """The message with its content as a single text. Raises `ApiError` (400) for parts that are not text."""
    where = f"messages[{index}].content"
    if message.content is None:
        raise ApiError(400, f"{where} is missing; send a text", param=where)
    text = message.content
    if not isinstance(text, str):
        for part in text:
            if part.type != "text" or part.text is None:
                raise ApiError(400, f"{where}: parts of type {part.type!r} are not supported; use text", param=where)
        text = "".join(part.text or "" for part in text)
    return {"role": ROLES.get(message.role, message.role), "content": text}


def several(prompt: Any) -> list[str | list[int]]:
    """The prompts of a request. Raises `ApiError` (400) if there are none, or an empty one."""
    one = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
    prompts: list[str | list[int]] = [prompt] if one else prompt
    if not prompts or not all(prompts):
        raise ApiError(400, "prompt is empty; give a text or token ids", param="prompt")
    return prompts
