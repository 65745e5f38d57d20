"""SGLang's control routes: pause, weight updates from disk or in the body, sleep."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Iterable
from typing import Annotated, Any

import safetensors.torch
from fastapi import APIRouter, Body
from safetensors import SafetensorError
from torch import Tensor

from dlm.serving.engine.served_weights import ServedWeights
from dlm.serving.engine.service import Service
from dlm.serving.http.bodies import body_route
from dlm.serving.http.errors import ApiError
from dlm.serving.schemas.control_requests import ChangeRequest, DiskRequest, MemoryRequest, PauseRequest, TensorRequest
from dlm.serving.schemas.control_responses import Changed, Paused
from dlm.serving.schemas.openapi import OF_CHANGES, responses

FORMATS = (None, "auto", "safetensors")
ABORTED = "aborted because {}; send it again"
PICKLE = b"\x80"
"""First byte of a pickle."""


def sglang_routes(service: Service, weights: ServedWeights) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["SGLang's control"], route_class=body_route(service.bodies))
    thread, control = service.thread, weights.control

    def changed(message: str) -> dict[str, Any]:
        return {
            "success": True,
            "message": message,
            "weight_version": control.weight_version,
            "asleep": sorted(control.asleep),
        }

    @router.post("/pause_generation", response_model=None, responses=responses(Paused, *OF_CHANGES))
    async def pause_generation(body: Annotated[PauseRequest | None, Body()] = None) -> dict[str, str]:
        mode = (body and body.mode) or "abort"
        if mode == "retract":
            raise ApiError(
                400, "mode='retract' is not supported: a canvas cannot be requeued; use in_place to pause requests, "
                "or abort to abort them",
                param="mode",
            )  # fmt: skip
        thread.pause()
        if mode == "abort":
            await weights.change(lambda control: None, abort=ABORTED.format("the server was paused"))
        return {"message": "Generation paused successfully.", "status": "ok"}

    @router.post("/continue_generation", response_model=None, responses=responses(Paused))
    async def continue_generation() -> dict[str, str]:
        thread.resume()
        return {"message": "Generation continued successfully.", "status": "ok"}

    @router.post("/update_weights_from_disk", response_model=None, responses=responses(Changed, *OF_CHANGES))
    async def update_weights_from_disk(body: DiskRequest) -> dict[str, Any]:
        if body.is_async:
            raise ApiError(400, "is_async=true is not supported; leave it out", param="is_async")
        await weights.update_from_disk(body.model_path, version_of(body), **how(body), keep_pause=bool(body.keep_pause))
        return changed("The weights were updated.")

    @router.post("/update_weights_from_tensor", response_model=None, responses=responses(Changed, *OF_CHANGES))
    async def update_weights_from_tensor(body: TensorRequest) -> dict[str, Any]:
        version, wishes = version_of(body), how(body)
        tensors = await asyncio.to_thread(read_all, body.serialized_named_tensors)
        last = body.flush_cache is not False
        done = await weights.add(tensors, last=last, version=version, **wishes)
        return changed("The weights were updated." if done else f"{weights.waiting} tensors received so far.")

    @router.get("/flush_cache", response_model=None, responses=responses(Changed, *OF_CHANGES))
    @router.post("/flush_cache", response_model=None, responses=responses(Changed, *OF_CHANGES))
    async def flush_cache() -> dict[str, Any]:
        await weights.finish()
        await weights.change(lambda control: control.flush_cache())
        return changed("Cache flushed.")

    @router.post("/release_memory_occupation", response_model=None, responses=responses(Changed, *OF_CHANGES))
    async def release_memory_occupation(body: Annotated[MemoryRequest | None, Body()] = None) -> dict[str, Any]:
        await weights.change(lambda control: control.sleep(None if body is None else body.tags))
        return changed("Memory released.")

    @router.post("/resume_memory_occupation", response_model=None, responses=responses(Changed, *OF_CHANGES))
    async def resume_memory_occupation(body: Annotated[MemoryRequest | None, Body()] = None) -> dict[str, Any]:
        await weights.change(lambda control: control.wake(None if body is None else body.tags))
        return changed("Memory resumed.")

    return router


def how(body: ChangeRequest) -> dict[str, Any]:
    """Arguments for `ServedWeights.change`. Raises `ApiError` (400) for an unsupported format."""
    if body.load_format not in FORMATS:
        raise ApiError(
            400, f"load_format={body.load_format!r:.40} is not supported; use safetensors", param="load_format"
        )
    return {"abort": ABORTED.format("the weights were updated") if body.abort_all_requests else None}


def version_of(body: ChangeRequest) -> int | None:
    """The version as a number. Raises `ApiError` (400) for any other text."""
    given = body.weight_version
    if given is None or (isinstance(given, int) and 0 <= given < 2**63):
        return given
    text = str(given)
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ApiError(
            400, f"weight_version={given!r:.40} must be a whole number of at least 0; leave it out for the next one",
            param="weight_version",
        )  # fmt: skip
    return int(text)


def read_all(texts: Iterable[str]) -> list[tuple[str, Tensor]]:
    """Tensors of base64-encoded safetensors files. Raises `ApiError` (400) for anything else; nothing is unpickled."""
    found: list[tuple[str, Tensor]] = []
    for index, text in enumerate(texts):
        where, data = f"serialized_named_tensors[{index}]", b""
        try:
            data = b64decode(text, validate=True)
            found += safetensors.torch.load(data).items()
        except (ValueError, KeyError, SafetensorError) as error:
            wanted = "base64 of safetensors.torch.save({name: tensor, ...})"
            if data.startswith(PICKLE):
                message = f"{where} is a pickle, which could run arbitrary code, and is not loaded; send {wanted}"
            else:
                message = (
                    f"{where} is not base64 of a safetensors file ({type(error).__name__}: {error!s:.200}); "
                    f"send {wanted}"
                )
            raise ApiError(400, message, param=where) from error
    return found
