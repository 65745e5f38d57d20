"""The application: routes, errors in OpenAI's shape, middleware, and the page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from dlm.serving.admin import admin_routes
from dlm.serving.catalogue import catalogue
from dlm.serving.disconnect import ClientGone
from dlm.serving.document import document
from dlm.serving.errors import NOT_FOUND, SERVER, ApiError
from dlm.serving.middleware import Guarded, Limited, Observed, cross_origin
from dlm.serving.openai_routes import openai_routes
from dlm.serving.polling import polling_routes
from dlm.serving.service import Service
from dlm.serving.settings import api_key
from dlm.serving.sglang_routes import sglang_routes
from dlm.serving.state import ServerState
from dlm.serving.trl_routes import PATHS, trl_routes

log = logging.getLogger("dlm.serving")

STATIC = Path(__file__).with_name("static")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Page(StaticFiles):
    """The page's files, with the headers that keep foreign code out of it."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(PAGE_HEADERS)
        return response


def build_app(service: Service, state: ServerState) -> FastAPI:
    """The ASGI application of one worker."""
    settings = service.settings
    middleware = [
        Middleware(Observed, metrics=service.metrics),
        *cross_origin(settings.cors_origins),
        Middleware(Guarded, key=api_key(), passwords=PATHS if service.weights else ()),
        Middleware(Limited, max_bytes=int(settings.max_body_mib * 2**20), seconds=settings.header_timeout),
    ]
    algorithms = catalogue(service.family, service.architecture.attention, service.defaults)
    app = FastAPI(title="dlm", version="1", middleware=middleware, openapi_url=None)
    app.include_router(openai_routes(service))
    app.include_router(polling_routes(service))
    app.include_router(admin_routes(service, state, algorithms))
    if service.weights is not None:
        app.include_router(sglang_routes(service, service.weights))
        app.include_router(trl_routes(service, service.weights))
    described = document(app, settings.names, algorithms)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(described)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    app.mount("/static", Page(directory=STATIC), name="static")
    _explain_errors(app)
    return app


def _explain_errors(app: FastAPI) -> None:
    """All errors have OpenAI's body."""

    @app.exception_handler(ApiError)
    async def own(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = _field(first["loc"])
        if first["type"] == "json_invalid":
            where, message = "", f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}"
        elif first["type"] == "extra_forbidden":
            where = f"{where}.{first['loc'][-1]}"
            message = f"{where} is unknown here; leave it out (see /openapi.json)"
        else:
            message = f"{where or 'the body'}: {first['msg']}"
        return JSONResponse(ApiError(400, message, param=where or None).body, 400)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        kind = NOT_FOUND if error.status_code == 404 else "invalid_request_error"
        shown = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:80]}", kind)
        return JSONResponse(shown.body, error.status_code, headers=error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)

    @app.exception_handler(UnicodeDecodeError)
    async def not_utf8(request: Request, error: UnicodeDecodeError) -> Response:
        return JSONResponse(ApiError(400, "the body is not UTF-8").body, 400)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        message = f"this request failed ({type(error).__name__}); the server's log says why"
        return JSONResponse(ApiError(500, message, SERVER).body, 500)


def _field(location: Sequence[str | int]) -> str:
    """The field's name as clients write it: without the names of alternatives that pydantic tried."""
    parts: list[str] = []
    named = True
    for part in location[1:]:
        if isinstance(part, int) or named:
            parts.append(str(part))
        named = isinstance(part, int)
    return ".".join(parts)
