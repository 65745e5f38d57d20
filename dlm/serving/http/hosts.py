"""A server on loopback without a key accepts only host names of its own machine.

Otherwise any web page a user visits could reach it: its author points the page's domain at 127.0.0.1 (DNS rebinding),
and the browser treats the server as the page's own origin. The page cannot change the name in the Host header.
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
"""Name and optional port; an IPv6 address is in brackets."""


def own_names(host: str, key: str | None) -> list[Middleware]:
    """`OwnNames`, if a server on `host` needs it."""
    return [Middleware(OwnNames, host=host)] if key is None and _is_loopback(host) else []


class OwnNames:
    """Rejects requests for a host name that is not this machine's (403). `localhost` and loopback addresses pass, with
    any port. So do requests without a Host header: no browser sends them.

    Args:
        app: the wrapped application.
        host: another accepted name: where the server listens.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.names = app, {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if given is None or self.is_own(given):
            await self.app(scope, receive, send)
            return
        message = (
            f"Host: {given!r:.80} is not a name of this machine, and the server has no key: use localhost or "
            f"127.0.0.1, have the proxy send Host: localhost, or start the server with {KEY_VARIABLE}"
        )
        await send_error(ApiError(403, message, PERMISSION, code="foreign_host"), scope, receive, send)

    def is_own(self, given: str) -> bool:
        """Whether a Host header names this machine, with or without a port."""
        found = HOST.fullmatch(given.strip())
        if found is None:
            return False
        name = (found[1] or found[2]).lower().removesuffix(".")
        return name in self.names or _is_loopback_address(name)


def _is_loopback(host: str) -> bool:
    """Whether a listener on `host` is reachable from this machine only."""
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
