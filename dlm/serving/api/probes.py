"""Liveness and readiness: the common responses of all probe routes."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from dlm.serving.engine.service import Service
from dlm.serving.engine.state import ServerState
from dlm.serving.schemas.responses import Status

PROBES: dict[int | str, dict[str, Any]] = {
    200: {"model": Status, "description": "The server is healthy or ready."},
    503: {"model": Status, "description": "It is not."},
}
"""`responses` of a probe route."""


def health_of(service: Service) -> JSONResponse:
    """200 while the decoder thread is alive."""
    alive = service.thread.alive
    return _probe("ok" if alive else "decoder ended", good=alive)


def readiness_of(service: Service, state: ServerState) -> JSONResponse:
    """200 while requests are accepted."""
    load = service.thread.load()
    name = state.name
    if state.ready and not load.alive:
        name = "decoder ended"
    elif state.ready and load.refusal is not None:
        name = "weights unavailable"
    return _probe(name, good=state.ready and load.alive and load.refusal is None)


def _probe(status: str, *, good: bool) -> JSONResponse:
    return JSONResponse({"status": status}, 200 if good else 503)
