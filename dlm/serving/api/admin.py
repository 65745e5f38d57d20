"""State of the server: health, readiness, models, algorithms, batch and fleet statistics, Prometheus metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from dlm.serving.api.probes import PROBES, health_of, readiness_of
from dlm.serving.engine.service import Service
from dlm.serving.engine.state import ServerState
from dlm.serving.schemas.openapi import responses
from dlm.serving.schemas.responses import BatchStats, Catalogue, FleetStats, Model, ModelList

PEER_TIMEOUT = 2.0


def admin_routes(service: Service, state: ServerState, algorithms: dict[str, Any]) -> APIRouter:
    """The routes; `algorithms` is the catalogue."""
    router = APIRouter(tags=["the server"])
    settings = service.settings

    @router.get("/health", responses=PROBES)
    async def health() -> Response:
        return health_of(service)

    @router.get("/ready", responses=PROBES)
    async def ready() -> Response:
        return readiness_of(service, state)

    def model(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": state.started,
            "owned_by": "dlm",
            "max_model_len": service.max_model_len,
            "family": service.family.name,
        }

    @router.get("/v1/models", response_model=None, responses=responses(ModelList))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in settings.names]}

    @router.get("/v1/models/{name:path}", response_model=None, responses=responses(Model, 404))
    async def one_model(name: str) -> dict[str, Any]:
        return model(service.check_model(name))

    @router.get("/generation/algorithms", response_model=None, responses=responses(Catalogue))
    async def list_algorithms() -> dict[str, Any]:
        return {"model": settings.names[0], **algorithms}

    @router.get("/batch/stats", response_model=None, responses=responses(BatchStats))
    async def batch_stats() -> dict[str, Any]:
        load = service.thread.load()
        return {
            "max_batch_size": settings.batch_size,
            "max_wait_time": settings.max_wait_time,
            "pending_requests": load.waiting,
            "running_requests": load.running,
            "total_batches_processed": load.steps,
            "avg_batch_size": round(load.canvases / load.steps, 4) if load.steps else 0.0,
            "batch_size_histogram": {str(size): count for size, count in sorted(load.sizes.items())},
            "arena_slots_used": load.arena_used,
            "arena_slots": load.arena_slots,
        }

    def own_stats() -> dict[str, Any]:
        load = service.thread.load()
        return {
            "index": settings.index,
            "url": settings.peers[settings.index] if settings.peers else state.url,
            "healthy": state.ready and load.alive,
            "requests_served": service.metrics.total(),
            "errors": service.metrics.total("server_error"),
            "running": load.running,
            "pending": load.waiting,
        }

    @router.get("/stats", response_model=None, responses=responses(FleetStats, 400))
    async def stats(request: Request, fleet: bool = True) -> dict[str, Any]:
        others = [index for index in range(len(settings.peers)) if index != settings.index] if fleet else []
        key = request.headers.get("Authorization")
        found = await asyncio.gather(*(ask(index, key) for index in others))
        workers = sorted([own_stats(), *found], key=lambda worker: worker["index"])
        return {
            "total_workers": len(workers),
            "healthy_workers": sum(worker["healthy"] for worker in workers),
            "total_requests": sum(worker["requests_served"] for worker in workers),
            "workers": workers,
        }

    async def ask(index: int, key: str | None) -> dict[str, Any]:
        """Another worker's statistics; reports it as unhealthy if it does not respond."""
        url = settings.peers[index]
        try:
            async with httpx.AsyncClient(timeout=PEER_TIMEOUT, trust_env=False) as client:
                headers = {"Authorization": key} if key else {}
                answer = await client.get(f"{url}/stats", params={"fleet": "false"}, headers=headers)
                [worker] = answer.raise_for_status().json()["workers"]
        except (httpx.HTTPError, ValueError, KeyError):
            nothing = {"requests_served": 0, "errors": 0, "running": 0, "pending": 0}
            return {"index": index, "url": url, "healthy": False, **nothing}
        found: dict[str, Any] = worker
        return found

    @router.get("/metrics", response_class=PlainTextResponse, responses=responses(None))
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
