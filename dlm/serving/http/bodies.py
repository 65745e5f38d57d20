"""How bodies of requests are read: their size is bounded before they are parsed, and parsing and validation run in one
thread, off the event loop. Knows neither routes nor what bodies mean.

A body of a few MiB can hold a million empty lists, and each costs far more memory and time than its two bytes. So what
it holds is counted first, with a few passes over the bytes. What is left is parsed and validated by pydantic in one go:
it refuses nesting without end and half surrogate pairs, and stops at the first wrong item of a list.

Parsing holds the interpreter's lock. More threads than one would only take turns away from the event loop, and the one
rests between two bodies for as long as the first took.
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
"""A body may have a part (a list, an object, a text, a name of a field) for so many bytes of the server's limit, and a
value (numbers are some, too) for so many."""
LEAST = 4 * 2**20
"""Bytes that a limit counts as at least, so that a low one does not refuse small bodies."""
PART = re.compile(rb'"[^"]*+"?|[\[{]')
"""A text without escapes, or the beginning of a list or an object. A text without an end reaches to the end, so that
nothing is looked at twice."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ReadRequest(Request):
    """A request whose body has been read; FastAPI asks it for the value and finds it valid.

    Args:
        request: as it came.
        data: its body.
        value: what the body holds, validated.
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
        max_bytes: of a body, which whoever took it has held it to.

    Attributes:
        most_parts, most_values: of a body.
    """

    def __init__(self, max_bytes: int) -> None:
        self.most_parts = max(LEAST, max_bytes) // PART_BYTES
        self.most_values = max(LEAST, max_bytes) // VALUE_BYTES
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bodies")
        self._rested = 0.0
        """`time.perf_counter()` before which the thread rests."""

    async def read(self, kind: TypeAdapter[Any], data: bytes) -> Any:
        """The validated value of a body. Raises `ApiError` (400) that names the first fault."""
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
        """As `read`, in this thread."""
        self.check_size(data)
        try:
            return kind.validate_json(data.removeprefix(codecs.BOM_UTF8))
        except ValidationError as error:
            faults: Any = error.errors(include_url=False, include_input=False)
            raise refusal(faults) from None

    def check_size(self, data: bytes) -> None:
        """Raise `ApiError` (400) for a body that would be large in memory, or slow to look through, once it is
        parsed."""
        commas = data.count(b",")
        if commas >= self.most_values:
            raise ApiError(
                400, f"the body has {commas} commas, and may have {self.most_values} values; send fewer at once, or "
                "raise the server's max_body_mib",
            )  # fmt: skip
        at_most = data.count(b'"') + data.count(b"[") + data.count(b"{")
        if at_most > self.most_parts and next(islice(parts(data), self.most_parts, None), None) is not None:
            raise ApiError(
                400, f"the body has more than {self.most_parts} lists, objects and texts; send fewer at once, or raise "
                "the server's max_body_mib",
            )  # fmt: skip

    def close(self) -> None:
        """Let go of the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def parts(data: bytes) -> Iterator[re.Match[bytes]]:
    """The lists, objects and texts of JSON."""
    return PART.finditer(data.replace(rb"\\", b"").replace(rb"\"", b""))


def body_route(bodies: BodyReader) -> type[APIRoute]:
    """The class of routes whose parameter `body` is read by `bodies`."""

    class BodyRoute(APIRoute):
        """A route; its endpoint's `body` has the type of the body."""

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
    """Raise `ApiError` (400) unless it is JSON: a page of another origin cannot send that without being asked."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        named = "missing" if content_type is None else f"{content_type!r:.80}"
        raise ApiError(400, f"Content-Type is {named}; send the body as JSON with Content-Type: application/json")


def refusal(faults: Sequence[dict[str, Any]]) -> ApiError:
    """400: the fault of the first wrong field that says most; pydantic has one for each type that the field may have.

    Args:
        faults: of `ValidationError.errors()`, with the locations inside the body.
    """
    first = faults[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']}")
    others = [one for one in faults if one["loc"][:1] == first["loc"][:1]]
    # What the client meant is more likely a type of which the value breaks a limit, or one that it fits further on.
    told = max(others, key=lambda one: (not one["type"].endswith("_type"), _numbers(one["loc"])))
    where = _field(told["loc"])
    if told["type"] == "extra_forbidden":
        where = f"{where}.{told['loc'][-1]:.80}"
        return ApiError(400, f"{where} is unknown here; leave it out (see /openapi.json)", param=where)
    return ApiError(400, f"{where or 'the body'}: {told['msg']}", param=where or None)


def _numbers(location: Sequence[str | int]) -> tuple[int, ...]:
    return tuple(part for part in location if isinstance(part, int))


def _field(location: Sequence[str | int]) -> str:
    """The field's name as clients write it: without the names of alternatives that pydantic tried."""
    parts: list[str] = []
    named = True
    for part in location:
        if isinstance(part, int) or (named and part.isidentifier()):
            parts.append(str(part))
        named = isinstance(part, int)
    return ".".join(parts)
