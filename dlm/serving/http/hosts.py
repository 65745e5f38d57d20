"""A server on loopback without a key answers to names of its own machine alone.

Otherwise a page that a user looks at could reach it: its author lets the page's own name point at 127.0.0.1 (DNS
rebinding), and the browser takes the server for the page's. What it cannot change is the name in the Host header.
"""

from __future__ import annotations

import re
import socket
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from dlm.serving.http.errors import PERMISSION, ApiError
from dlm.serving.http.middleware import send_error
from dlm.serving.settings import KEY_VARIABLE

HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]@/?#\\]+))(?::\d*)?")
"""Name and port: an IPv6 address is in brackets."""


def own_names(host: str, key: str | None) -> list[Middleware]:
    """`OwnNames` for a server on `host` that needs it."""
    return [Middleware(OwnNames, host=host)] if key is None and _is_loopback(host) else []


class OwnNames:
    """Refuses requests to a name that is not this machine's (403); `localhost` and addresses of loopback are, at any
    port. A request without a name passes: no browser sends one.

    Args:
        app: what it guards.
        host: a name more, where the server listens.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.names = app, {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if given is None or self.is_own(given):
            await self.app(scope, receive, send)
            return
        message = (
            f"Host: {given!r:.80} is no name of this machine, and the server has no key: ask for localhost or "
            f"127.0.0.1, have a proxy send Host: localhost, or start the server with {KEY_VARIABLE}"
        )
        await send_error(ApiError(403, message, PERMISSION, code="foreign_host"), scope, receive, send)

    def is_own(self, given: str) -> bool:
        """Whether what the header says is a name of this machine, with a port or without."""
        found = HOST.fullmatch(given.strip())
        if found is None:
            return False
        name = (found[1] or found[2]).lower().removesuffix(".")
        return name in self.names or _is_loopback_address(name)


def _is_loopback(host: str) -> bool:
    """Whether what listens on `host` can be reached from this machine alone."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False  # nothing can listen there either
    return all(_is_loopback_address(str(address[0])) for *_, address in found)


def _is_loopback_address(text: str) -> bool:
    try:
        return ip_address(text).is_loopback
    except ValueError:
        return False
