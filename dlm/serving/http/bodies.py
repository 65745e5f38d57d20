"""Reads request bodies: their size is bounded before they are parsed, and parsing and validation run in a single thread
off the event loop. Knows neither routes nor what bodies mean.

A body of a few MiB can hold a million empty lists, each costing far more memory and time than its two bytes. So its
elements are counted first, in a few passes over the bytes. Then pydantic parses and validates it in one go: it rejects
excessive nesting and lone surrogates, and stops at the first wrong item of a list.

Parsing holds the GIL. More than one thread would only take time from the event loop, and the single thread pauses after
each body for as long as that body took.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from dlm.serving.http.errors import ApiError

PART_BYTES, VALUE_BYTES = 80, 16
"""A body may have one part (list, object, string or field name) per `PART_BYTES` of the server's limit, and one value
(numbers included) per `VALUE_BYTES`."""
LEAST = 4 * 2**20
"""Lower bound of the limit used here, in bytes, so that a low limit does not reject small bodies."""
PART = re.compile(rb'"[^"]*+"?|[\[{]')
"""A string without escapes, or the start of a list or object. An unterminated string extends to the end, so that no
byte is scanned twice."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ReadRequest(Request):
    """A request whose body has already been read and validated; FastAPI gets the value from it.

    Args:
        request: the original one.
        data: its body.
        value: the body's validated value.
    """

    def __init__(self, request: Request, data: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._data, self._value = data, value

    async def body(self) -> bytes:
        return self._data

    async def json(self) -> Any:
        return self._value


class BodyReader:
    """Reads bodies, one at a time.

    Args:
        max_bytes: size limit of a body, enforced when it was received.

    Attributes:
        most_parts, most_values: limits of a body.
    """

    def __init__(self, max_bytes: int) -> None:
        self.most_parts = max(LEAST, max_bytes) // PART_BYTES
        self.most_values = max(LEAST, max_bytes) // VALUE_BYTES
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bodies")
        self._rested = 0.0
        """`time.perf_counter()` until which the thread pauses."""

    async def read(self, kind: TypeAdapter[Any], data: bytes) -> Any:
        """The validated value of a body. Raises `ApiError` (400) naming the first fault."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._parse_rested, kind, data)

    def _parse_rested(self, kind: TypeAdapter[Any], data: bytes) -> Any:
        begun = time.perf_counter()
        if begun < self._rested:
            time.sleep(self._rested - begun)
            begun = time.perf_counter()
        try:
            return self.parse(kind, data)
        finally:
            ended = time.perf_counter()
            self._rested = 2 * ended - begun

    def parse(self, kind: TypeAdapter[Any], data: bytes) -> Any:
        """Like `read`, in the calling thread."""
        self.check_size(data)
        try:
            return kind.validate_json(data.removeprefix(codecs.BOM_UTF8))
        except ValidationError as error:
            faults: Any = error.errors(include_url=False, include_input=False)
            raise refusal(faults) from None

    def check_size(self, data: bytes) -> None:
        """Raise `ApiError` (400) for a body that would take too much memory, or too long to validate, once parsed."""
        commas = data.count(b",")
        if commas >= self.most_values:
            raise ApiError(
                400, f"the body has {commas} commas; the limit is {self.most_values} values; send fewer at once, or "
                "raise the server's max_body_mib",
            )  # fmt: skip
        at_most = data.count(b'"') + data.count(b"[") + data.count(b"{")
        if at_most > self.most_parts and next(islice(parts(data), self.most_parts, None), None) is not None:
            raise ApiError(
                400, f"the body has more than {self.most_parts} lists, objects and strings; send fewer at once, or "
                "raise the server's max_body_mib",
            )  # fmt: skip

    def close(self) -> None:
        """Shut down the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def parts(data: bytes) -> Iterator[re.Match[bytes]]:
    """The lists, objects and strings of a JSON text."""
    return PART.finditer(data.replace(rb"\\", b"").replace(rb"\"", b""))


def body_route(bodies: BodyReader) -> type[APIRoute]:
    """The class of routes whose `body` parameter is read by `bodies`."""

    class BodyRoute(APIRoute):
        """A route; the type of its endpoint's `body` parameter is that of the request body."""

        def get_route_handler(self) -> Handler:
            answer = super().get_route_handler()
            kind = get_type_hints(self.endpoint).get("body")
            if kind is None:
                return answer
            reader: TypeAdapter[Any] = TypeAdapter(kind)

            async def read_first(request: Request) -> Response:
                data = await request.body()
                if not data:
                    return await answer(request)
                check_type(request.headers.get("content-type"))
                return await answer(ReadRequest(request, data, await bodies.read(reader, data)))

            return read_first

    return BodyRoute


def check_type(content_type: str | None) -> None:
    """Raise `ApiError` (400) unless it is JSON: a page of another origin cannot send that without a CORS preflight."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        named = "missing" if content_type is None else f"{content_type!r:.80}"
        raise ApiError(400, f"Content-Type is {named}; send the body as JSON with Content-Type: application/json")


def refusal(faults: Sequence[dict[str, Any]]) -> ApiError:
    """400: the most informative fault of the first invalid field; pydantic reports one per type of a union.

    Args:
        faults: from `ValidationError.errors()`, with locations inside the body.
    """
    first = faults[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}")
    others = [one for one in faults if one["loc"][:1] == first["loc"][:1]]
    # The client most likely meant a type whose limits the value violates, or one that matches further into the value.
    told = max(others, key=lambda one: (not one["type"].endswith("_type"), _numbers(one["loc"])))
    where = _field(told["loc"])
    if told["type"] == "extra_forbidden":
        where = f"{where}.{told['loc'][-1]:.80}"
        return ApiError(400, f"{where} is unknown here; leave it out (see /openapi.json)", param=where)
    return ApiError(400, f"{where or 'the body'}: {told['msg']}", param=where or None)


def _numbers(location: Sequence[str | int]) -> tuple[int, ...]:
    return tuple(part for part in location if isinstance(part, int))


def _field(location: Sequence[str | int]) -> str:
    """The field's path as clients write it: without the union members that pydantic tried."""
    parts: list[str] = []
    named = True
    for part in location:
        if isinstance(part, int) or (named and part.isidentifier()):
            parts.append(str(part))
        named = isinstance(part, int)
    return ".".join(parts)
