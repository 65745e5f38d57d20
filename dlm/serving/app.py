"""The application: routes, errors in OpenAI's shape, middleware, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from dlm.serving.api.admin import admin_routes
from dlm.serving.api.openai import openai_routes
from dlm.serving.api.polling import polling_routes
from dlm.serving.api.sglang import sglang_routes
from dlm.serving.api.trl import PATHS, trl_routes
from dlm.serving.engine.service import Service
from dlm.serving.engine.state import ServerState
from dlm.serving.http.bodies import refusal
from dlm.serving.http.disconnect import ClientGone
from dlm.serving.http.errors import ApiError, plain
from dlm.serving.http.hosts import own_names
from dlm.serving.http.middleware import Answered, Guarded, Limited, Observed, cross_origin
from dlm.serving.schemas.catalogue import catalogue
from dlm.serving.schemas.openapi import document
from dlm.serving.settings import api_key

STATIC = Path(__file__).with_name("page")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Page(StaticFiles):
    """The page's files, with headers that block third-party code."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(PAGE_HEADERS)
        return response


def build_app(service: Service, state: ServerState) -> FastAPI:
    """The ASGI application of one worker."""
    settings = service.settings
    key = api_key()
    middleware = [
        Middleware(Observed, metrics=service.metrics),
        Middleware(Answered),
        *own_names(settings.host, key),
        *cross_origin(settings.cors_origins),
        Middleware(Guarded, key=key, passwords=PATHS if service.weights else ()),
        Middleware(Limited, max_bytes=settings.max_body_bytes, seconds=settings.header_timeout),
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
    """Give all errors OpenAI's body."""

    @app.exception_handler(ApiError)
    async def own(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        """For a path, a query or a missing body; all other bodies are validated by `BodyRoute`."""
        shown = refusal([{**one, "loc": one["loc"][1:]} for one in error.errors()])
        return JSONResponse(shown.body, shown.status)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        shown = plain(error.status_code, error.detail, request.method, request.scope["path"])
        return JSONResponse(shown.body, shown.status, headers=error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)
