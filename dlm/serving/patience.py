"""Connections that send nothing, or a head that never ends, are closed after a while."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_for(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP protocol with a limit of `seconds` for the head of a request."""

    class PatientProtocol(H11Protocol):
        """Closes a connection on which no request has begun in time."""

        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._limit is None and self._idle:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._limit is not None:
                self._limit.cancel()
            super().connection_lost(exc)

        @property
        def _idle(self) -> bool:
            cycle: Any = self.cycle
            return cycle is None or cycle.response_complete

        def _wait(self) -> None:
            self._limit = self.loop.call_later(seconds, self._look)

        def _look(self) -> None:
            self._limit = None
            if self._idle and not self.transport.is_closing():
                self.transport.close()

    return PatientProtocol
