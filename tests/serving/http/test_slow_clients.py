"""Which connections are closed when the server looks at them; the looks are made here, no time passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from dlm.serving.http.slow_clients import patient_for

SECONDS = 7.0


class Loop:
    """Has a call that is due later made when the test says so."""

    def __init__(self) -> None:
        self.due: Callable[[], None] | None = None

    def call_later(self, seconds: float, call: Callable[[], None]) -> Loop:
        assert (seconds, self.due) == (SECONDS, None)
        self.due = call
        return self

    def cancel(self) -> None:
        self.due = None

    def look(self) -> None:
        """The time is up."""
        call, self.due = self.due, None
        assert call is not None
        call()


class Transport(asyncio.Transport):
    """Counts what waits for the client, and notes how the connection ended."""

    def __init__(self) -> None:
        super().__init__()
        self.unread, self.end = 0, ""

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return bool(self.end)

    def close(self) -> None:
        self.end = "closed"

    def abort(self) -> None:
        self.end = "aborted"


def request(*, is_answered: bool) -> SimpleNamespace:
    """What uvicorn knows of one."""
    return SimpleNamespace(response_complete=is_answered, message_event=asyncio.Event())


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture(name="connection")
def new_connection(loop: Loop, transport: Transport) -> Iterator[Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Is never called."""

    config: Any = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    config.load()
    given: dict[str, Any] = {"config": config, "server_state": ServerState(), "app_state": {}, "_loop": loop}
    connection = patient_for(SECONDS)(**given)
    connection.connection_made(transport)
    yield connection
    connection.connection_lost(None)
    assert loop.due is None, "nobody looks at a connection that is gone"


def test_one_that_says_nothing_is_closed(connection: Any, loop: Loop, transport: Transport) -> None:
    loop.look()
    assert transport.end == "closed"


def test_one_in_use_is_kept_until_a_look_finds_no_new_request(
    connection: Any, loop: Loop, transport: Transport
) -> None:
    for _ in range(5):
        connection.cycle = request(is_answered=True)
        loop.look()
        assert transport.end == ""
    loop.look()
    assert transport.end == "closed"


def test_one_whose_answer_is_being_made_is_kept(connection: Any, loop: Loop, transport: Transport) -> None:
    connection.cycle = request(is_answered=False)
    for _ in range(5):
        loop.look()
        assert transport.end == ""


def test_one_whose_client_reads_slowly_is_kept(connection: Any, loop: Loop, transport: Transport) -> None:
    """Also when the whole answer has been written and waits for it."""
    connection.cycle = request(is_answered=False)
    for unread in (5000, 4000, 6000, 5999):
        transport.unread = unread
        loop.look()
        assert transport.end == ""
    connection.cycle.response_complete = True
    for unread in (3000, 1):
        transport.unread = unread
        loop.look()
        assert transport.end == ""
    transport.unread = 0
    loop.look()
    assert transport.end == "closed"


@pytest.mark.parametrize("is_answered", [False, True])
def test_one_whose_client_reads_nothing_is_dropped(
    connection: Any, loop: Loop, transport: Transport, is_answered: bool
) -> None:
    connection.cycle = request(is_answered=is_answered)
    transport.unread = 5000
    loop.look()
    assert transport.end == ""
    loop.look()
    assert transport.end == "aborted"
