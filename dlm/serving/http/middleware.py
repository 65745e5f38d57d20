"""ASGI middleware: request id, access log and metrics; a response to unexpected errors; the key; body limits.

From the outside in: `Observed`, `Answered`, `OwnNames` of `dlm.serving.http.hosts`, CORS, `Guarded`, `Limited`.
"""

from __future__ import annotations

import asyncio
import binascii
import hmac
import json
import logging
import re
import time
import uuid
from base64 import b64decode
from collections.abc import Awaitable, Callable, Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlm.serving.http.errors import AUTHENTICATION, TIMEOUT, ApiError, unexpected
from dlm.serving.metrics import Metrics

access, log = logging.getLogger("dlm.access"), logging.getLogger("dlm.serving")

OPEN = ("/health", "/health/", "/ready", "/v1/health", "/")
"""Paths that need no key: probes, and the page (with its files), which contains no user data."""
PAGE = "/static/"
GOOD_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


async def send_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error."""
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def cross_origin(origins: Sequence[str]) -> list[Middleware]:
    """CORS for pages of `origins`; no middleware if empty."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id"],
        )
    ]


class Observed:
    """Gives each request an id, counts it and logs one line without body, query or headers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        begun, status = time.perf_counter(), 499

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            if scope["method"] == "POST":
                self.metrics.requests.labels(route, outcome(status)).inc()
                self.metrics.latency.labels(route).observe(seconds)
            level = logging.INFO if scope["method"] == "POST" or status >= 400 else logging.DEBUG
            facts = {"request_id": request_id, "method": scope["method"], "route": route, "status": status}
            access.log(level, "request", extra={"facts": {**facts, "seconds": round(seconds, 4)}})


class Answered:
    """Answers unexpected errors with 500 and keeps the connection; starlette's own handler re-raises the error, upon
    which uvicorn closes it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if begun:
                raise  # the response is incomplete, and the client has to see that
            log.error("a request failed", exc_info=error)
            await send_error(unexpected(error), scope, receive, send)


def outcome(status: int) -> str:
    """Outcome label of a status; 499 is a client that disconnected."""
    if status == 499:
        return "client_left"
    return "ok" if status < 400 else "client_error" if status < 500 else "server_error"


class Guarded:
    """Requires the key, if there is one.

    Args:
        app: the wrapped application.
        key: None accepts requests without a key.
        passwords: paths that also accept the key as the password of basic authentication, because their clients can
            only take it from the URL.
    """

    def __init__(self, app: ASGIApp, key: str | None, passwords: Collection[str] = ()) -> None:
        self.app, self.key, self.passwords = app, None if key is None else key.encode(), passwords

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.key is None or self._is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "basic" and scope["path"] in self.passwords:
            scheme, given = "bearer", password(given)
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.key):
            await self.app(scope, receive, send)
            return
        message = "the key is wrong" if given else "a key is required: send Authorization: Bearer <key>"
        error = ApiError(401, message, AUTHENTICATION, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await send_error(error, scope, receive, send)

    @staticmethod
    def _is_open(path: str) -> bool:
        return path in OPEN or path.startswith(PAGE)


def password(given: str) -> str:
    """The password of basic authentication credentials; empty if there is none."""
    try:
        return b64decode(given, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


class Limited:
    """Bounds a body's size and the time to receive it, before it is parsed."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self.app, self.max_bytes, self.seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        try:
            body = await self._body(Headers(scope=scope), receive)
        except ApiError as error:
            await send_error(error, scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _replayed(body, receive), send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None if the client disconnected. Raises `ApiError`: 413, 408."""
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_bytes:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.max_bytes:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408, f"no complete body within {self.seconds:g} seconds", TIMEOUT, headers={"Connection": "close"}
            ) from None

    def _too_large(self) -> ApiError:
        limit = f"{self.max_bytes / 2**20:g} MiB"
        return ApiError(413, f"the body is larger than {limit}", code="body_too_large", headers={"Connection": "close"})


def _replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    told = False

    async def once() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
