"""How bodies of requests are read: their size is bounded before they are parsed, and parsing and validation run in one
thread, off the event loop. Knows neither routes nor what bodies mean.

A body of a few MiB can hold a million empty lists, and each costs far more memory and time than its two bytes. So what
it holds is counted first, with a few passes over the bytes. What is left is parsed and validated by pydantic in one go:
it refuses nesting without end and half surrogate pairs, and stops at the first wrong item of a list.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from itertools import islice
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from dlm.serving.errors import ApiError

MOST_PARTS = 50_000
"""Lists, objects and texts of a body; names of fields are texts too."""
MOST_VALUES = 2**20
"""Values of a body, numbers among them."""
PART = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]', re.DOTALL)
"""A text, or the beginning of a list or an object. A text without an end reaches to the end: nothing is read twice."""

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


def body_route(pool: Executor) -> type[APIRoute]:
    """The class of routes whose parameter `body` is read in `pool`. One thread is best: parsing holds the interpreter's
    lock, and more threads would only take turns away from the event loop."""

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
                value = await asyncio.get_running_loop().run_in_executor(pool, read, reader, data)
                return await answer(ReadRequest(request, data, value))

            return read_first

    return BodyRoute


def check_type(content_type: str | None) -> None:
    """Raise `ApiError` (400) unless it is JSON: a page of another origin cannot send that without being asked."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        named = "missing" if content_type is None else f"{content_type!r:.80}"
        raise ApiError(400, f"Content-Type is {named}; send the body as JSON with Content-Type: application/json")


def read(reader: TypeAdapter[Any], data: bytes) -> Any:
    """The validated value of a body. Raises `ApiError` (400) that names the first fault."""
    check_size(data)
    try:
        return reader.validate_json(data.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        faults: Any = error.errors(include_url=False, include_input=False)
        raise refusal(faults) from None


def check_size(data: bytes) -> None:
    """Raise `ApiError` (400) for a body that would be large in memory, or slow to look through, once it is parsed."""
    commas = data.count(b",")
    if commas >= MOST_VALUES:
        raise ApiError(400, f"the body has {commas} commas, and may have {MOST_VALUES} values; send fewer at once")
    at_most = data.count(b'"') + data.count(b"[") + data.count(b"{")
    if at_most > MOST_PARTS and next(islice(PART.finditer(data), MOST_PARTS, None), None) is not None:
        raise ApiError(
            400, f"the body has more than {MOST_PARTS} lists, objects and texts; send fewer at once, or token ids"
        )


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
