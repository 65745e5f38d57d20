"""Timeouts for connections that send nothing or an endless head, or that do not read their answer."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_for(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP protocol with a check of each connection every `seconds`."""

    class PatientProtocol(H11Protocol):
        """Closes a connection on which no request has begun since the last check, and aborts one whose client has read
        none of its pending data since then."""

        _next: asyncio.TimerHandle | None = None
        _unread = 0
        _request: Any = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
            super().connection_made(transport)
            self._next = self.loop.call_later(seconds, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._next is not None:
                self._next.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            unread, request = self.transport.get_write_buffer_size(), self.cycle
            if unread and unread == self._unread:
                self.transport.abort()  # closing would wait until everything is read
                return
            is_idle = request is self._request and (request is None or request.response_complete)
            if is_idle and not unread and not self.transport.is_closing():
                self.transport.close()
            self._unread, self._request = unread, request
            self._next = self.loop.call_later(seconds, self._look)

    return PatientProtocol
