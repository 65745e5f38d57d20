"""Submit and poll: `/v1/generate`, `/v1/generate_batch`, `/v1/result/{id}`, `/v1/health`.

Ids are random, so that clients cannot read each other's results. An id modulo the number of workers is the index of the
worker that has the result; other workers fetch it from there, so that polling works through a router.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from contextlib import ExitStack
from typing import Any

import httpx
from fastapi import APIRouter, Request, Response

from dlm.serving.api.answers import Sample, usage
from dlm.serving.api.probes import PROBES, health_of
from dlm.serving.engine.call import Call
from dlm.serving.engine.service import PreparedRequest, Service
from dlm.serving.http.bodies import body_route
from dlm.serving.http.errors import NOT_FOUND, SERVER, ApiError, draining, unexpected
from dlm.serving.schemas.openapi import OF_BODIES, responses
from dlm.serving.schemas.requests import SubmitBatchRequest, SubmitRequest
from dlm.serving.schemas.responses import Result, Tickets
from dlm.serving.schemas.unsupported_params import refuse_foreign

log = logging.getLogger("dlm.serving")

ID_BITS = 128
"""Random bits per id."""
PEER_TIMEOUT = 10.0


class Results:
    """Results of one worker.

    Args:
        index, workers: index of this worker, and the number of workers.
        ttl: seconds a result is kept.
    """

    def __init__(self, index: int, workers: int, ttl: float) -> None:
        self._index, self._workers, self._ttl = index, workers, ttl
        self._kept: dict[int, dict[str, Any]] = {}
        """Responses to polls, by id."""
        self._ended: deque[tuple[float, int]] = deque()
        """Ids in order of completion, each with the `time.monotonic()` after which it expires."""

    def open(self) -> int:
        """A new id."""
        self._sweep()
        request_id = secrets.randbits(ID_BITS) * self._workers + self._index
        self._kept[request_id] = {"request_id": request_id, "status": "running", "text": None}
        return request_id

    def close(self, request_id: int, **outcome: Any) -> None:
        """Store the outcome of a request: `finished` or `failed`."""
        self._kept[request_id] = {"request_id": request_id, "text": None, **outcome}
        self._ended.append((time.monotonic() + self._ttl, request_id))

    def get(self, request_id: int) -> dict[str, Any] | None:
        """The response to a poll; None if the id is unknown or has expired."""
        self._sweep()
        return self._kept.get(request_id)

    def owner(self, request_id: int) -> int:
        """Index of the worker that has the result."""
        return request_id % self._workers

    def _sweep(self) -> None:
        now = time.monotonic()
        while self._ended and self._ended[0][0] < now:
            del self._kept[self._ended.popleft()[1]]


def polling_routes(service: Service) -> APIRouter:
    """The routes."""
    settings = service.settings
    router = APIRouter(prefix="/v1", tags=["submit and poll"], route_class=body_route(service.bodies))
    results = Results(settings.index, settings.workers, settings.result_ttl)
    running: set[asyncio.Task[None]] = set()

    async def submit(body: SubmitRequest | SubmitBatchRequest, prompts: list[Any]) -> dict[str, Any]:
        refuse_foreign(body.unknown)
        if body.sampling().get("n", 1) != 1:
            raise ApiError(400, "n: a submitted request has one sample; submit it n times", param="n")
        if not all(prompts):
            raise ApiError(400, "prompt is empty; send a text or token ids", param="prompt")
        params = service.defaults.params(service.given(body), body.max_tokens)
        prepared = [await service.in_text_thread(service.prepare, prompt, params) for prompt in prompts]
        calls = [service.call([one]) for one in prepared]
        with ExitStack() as submitted:
            for call in calls:
                call.submit()
                submitted.callback(call.cancel)
            submitted.pop_all()
        ids = []
        for call, one in zip(calls, prepared, strict=True):
            ids.append(results.open())
            task = asyncio.create_task(follow(ids[-1], call, one))
            running.add(task)
            task.add_done_callback(running.discard)
        return {"request_ids": ids, "status": "submitted"}

    async def follow(request_id: int, call: Call, prepared: PreparedRequest) -> None:
        """Wait for a request and store its outcome."""
        outcome = failed(draining())  # if this task is cancelled
        try:
            [[completion]] = await call.completions()
            sample = Sample.of(completion, prepared, service.codec, call.weight_versions[0])
            service.metrics.count_answer(sample.prompt_tokens, len(sample.token_ids), sample.nfe)
            outcome = finished(sample)
        except ApiError as error:
            outcome = failed(error)
        except Exception as error:
            log.error("a submitted request failed", exc_info=error)
            outcome = failed(unexpected(error))
        finally:
            call.cancel()
            results.close(request_id, **outcome)

    @router.post("/generate", response_model=None, responses=responses(Tickets, *OF_BODIES, 429, 503))
    async def generate(body: SubmitRequest) -> dict[str, Any]:
        return await submit(body, [body.prompt])

    @router.post("/generate_batch", response_model=None, responses=responses(Tickets, *OF_BODIES, 429, 503))
    async def generate_batch(body: SubmitBatchRequest) -> dict[str, Any]:
        return await submit(body, body.prompts)

    @router.get("/result/{request_id}", response_model=None, responses=responses(Result, 400, 404, 503))
    async def result(request_id: int, request: Request) -> dict[str, Any]:
        unknown = ApiError(404, f"request_id={request_id} is unknown or has expired", NOT_FOUND, param="request_id")
        owner = results.owner(request_id)
        if owner != settings.index and settings.peers:
            return await fetch(settings.peers[owner], request_id, request, unknown)
        found = results.get(request_id)
        if found is None:
            raise unknown
        return found

    async def fetch(peer: str, request_id: int, request: Request, unknown: ApiError) -> dict[str, Any]:
        """Fetch the result from the worker that has it."""
        headers = {"Authorization": request.headers["Authorization"]} if "Authorization" in request.headers else {}
        try:
            async with httpx.AsyncClient(timeout=PEER_TIMEOUT, trust_env=False) as client:
                answer = await client.get(f"{peer}/v1/result/{request_id}", headers=headers)
            if answer.status_code == 404:
                raise unknown
            found: dict[str, Any] = answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            raise ApiError(
                503, f"the worker that has request_id={request_id} does not respond; try again", SERVER
            ) from error
        return found

    @router.get("/health", responses=PROBES)
    async def health() -> Response:
        return health_of(service)

    return router


def finished(sample: Sample) -> dict[str, Any]:
    """Stored outcome of an answered request."""
    return {
        "status": "finished",
        "text": sample.text,
        "token_ids": list(sample.token_ids),
        "finish_reason": sample.finish_reason,
        "nfe": sample.nfe,
        "seed": sample.seed,
        "weight_version": sample.weight_version,
        "usage": usage([[sample]]),
    }


def failed(error: ApiError) -> dict[str, Any]:
    """Stored outcome of a failed request."""
    return {"status": "failed", "error": error.body["error"]}
