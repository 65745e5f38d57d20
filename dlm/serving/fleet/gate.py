"""The HTTP entry point of several workers. OpenAI's paths go through the router, which balances them; all others go
straight to a ready worker.

The router runs on loopback behind the gate: exposed, it would let anybody add and remove workers; it also drops headers
and queries of paths it does not know, and reports its failures in plain text.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from socket import socket

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dlm.serving.http.disconnect import ClientGone, until_gone
from dlm.serving.http.errors import SERVER, ApiError, plain
from dlm.serving.http.hosts import own_names
from dlm.serving.http.middleware import Answered, Limited, cross_origin
from dlm.serving.http.slow_clients import patient_for
from dlm.serving.settings import FleetSettings, api_key

ROUTED = {("POST", "/v1/chat/completions"), ("POST", "/v1/completions")}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
DROPPED = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "expect", "host", "content-length",
}  # fmt: skip
"""Hop-by-hop headers (RFC 9110, 7.6.1), and those that are set anew. CORS headers are dropped too: the gate sets
them."""
JSON, EVENTS = "application/json", "text/event-stream"
"""Content types of workers on routed paths; the router's own answers are plain text."""
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError)
"""The connection could not be established, or broke."""
SPARE = 30.0
"""Seconds after which a worker counts as lost, beyond `request_timeout`, at which it answers 504 itself."""


class Gate:
    """Serves in a thread of its own.

    Args:
        listening: from `bind`.
        router: URL of the router.
        ready: returns the URLs of the workers that are ready now.
        settings: limits and CORS origins.
    """

    def __init__(
        self, listening: socket, router: str, ready: Callable[[], Sequence[str]], settings: FleetSettings
    ) -> None:
        self._router, self._ready, self._listening = router, ready, listening
        self._turns = itertools.count()
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(settings.request_timeout + SPARE, connect=5.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,
        )
        app = Starlette(
            routes=[Route("/{path:path}", self._answer, methods=METHODS)],
            middleware=[
                Middleware(Answered),
                *own_names(settings.host, api_key()),
                *cross_origin(settings.cors_origins),
                Middleware(Limited, max_bytes=settings.max_body_bytes, seconds=settings.header_timeout),
            ],
            exception_handlers={ApiError: _refuse, ClientGone: _gone, HTTPException: _plain},
        )
        config = uvicorn.Config(
            app,
            http=patient_for(settings.header_timeout),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=64 * 1024,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="gate", daemon=True
        )

    def open(self) -> None:
        """Start serving."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def close(self) -> None:
        """Shut down, allowing a few seconds for answers in progress."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._listening.close()

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        try:
            found = await until_gone(request, self._ask(request, body))
        except httpx.TimeoutException:
            raise ApiError(504, "the worker no longer responds; try again", SERVER, code="timeout") from None
        except httpx.HTTPError:
            raise lost() from None
        return Passed(found)

    async def _ask(self, request: Request, body: bytes) -> httpx.Response:
        """A response whose body is still to be read. The router's own errors (failures, bodies it does not understand)
        are not passed on: a worker is asked directly instead.

        Raises:
            ApiError: no worker is ready.
            httpx.HTTPError: no ready worker can be reached, or one was lost while it answered.
        """
        routed = (request.method, request.scope["path"]) in ROUTED
        if routed:
            found = await self._ask_router(request, body)
            if found is not None:
                return found
        workers = list(self._ready())
        if not workers:
            raise ApiError(503, "no worker is ready yet; try again", SERVER, headers={"Retry-After": "5"})
        # A request that a lost worker may have begun goes to another one only if running it twice does no harm.
        again = BROKEN if routed or request.method == "GET" else (httpx.ConnectError,)
        first = next(self._turns)
        for turn in range(len(workers) - 1):
            try:
                return await self._send(workers[(first + turn) % len(workers)], request, body)
            except again:
                continue
        return await self._send(workers[(first - 1) % len(workers)], request, body)

    async def _ask_router(self, request: Request, body: bytes) -> httpx.Response | None:
        """A worker's answer through the router; None if the router answers itself, or not at all."""
        try:
            found = await self._send(self._router, request, body)
        except BROKEN:
            return None
        if found.headers.get("content-type", "").startswith((JSON, EVENTS)):
            return found
        await found.aclose()
        return None

    async def _send(self, base: str, request: Request, body: bytes) -> httpx.Response:
        target = _target(request)
        try:
            url = httpx.URL(base).copy_with(raw_path=target)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ApiError(
                400, f"{target!r:.80} is not a valid URL path ({error!s:.80}); percent-encode special characters"
            ) from error
        headers = [(key, value) for key, value in request.headers.raw if not _dropped(key)]
        return await self._client.send(
            self._client.build_request(request.method, url, headers=headers, content=body or None), stream=True
        )


def lost() -> ApiError:
    """502: the connection to a worker broke."""
    return ApiError(
        502, "the worker handling this request was lost; try again", SERVER, code="worker_lost",
        headers={"Retry-After": "1"},
    )  # fmt: skip


def _dropped(header: bytes) -> bool:
    name = header.decode("latin-1").lower()
    return name in DROPPED or name.startswith("access-control-allow")


def _target(request: Request) -> bytes:
    """Path and query as the client wrote them."""
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope.get("query_string", b"")
    return path + b"?" + query if query else path


class Passed(StreamingResponse):
    """A response streamed through as it arrives."""

    def __init__(self, found: httpx.Response) -> None:
        super().__init__(self._pieces(), found.status_code)
        self._found = found
        self.raw_headers = [
            (key, value) for key, value in found.headers.raw if key.lower() == b"content-length" or not _dropped(key)
        ]

    async def _pieces(self) -> AsyncIterator[bytes]:
        """The body. If a worker is lost during an event stream, the last event is an error."""
        try:
            async for piece in self._found.aiter_raw():
                yield piece
        except httpx.HTTPError:
            if not self._found.headers.get("content-type", "").startswith(EVENTS):
                raise  # the body is shorter than its Content-Length
            yield f"data: {json.dumps(lost().body)}\n\n".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._found.aclose()


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # what the handler is for
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # what the handler is for
    shown = plain(error.status_code, error.detail, request.method, request.scope["path"])
    return JSONResponse(shown.body, shown.status, headers=error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)
