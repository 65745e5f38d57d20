"""A server in this process, for tests that look inside or break something."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from dlm.models.io.model_source import CheckpointSource
from dlm.serving.app import build_app
from dlm.serving.engine.service import Service
from dlm.serving.engine.state import ServerState
from dlm.serving.fleet.processes import bind
from dlm.serving.fleet.worker import url_of
from dlm.serving.http.slow_clients import patient_for
from dlm.serving.settings import ServerSettings
from tests.running import TIMEOUT, wait_until


class Held:
    """Forwards that stand still, each at its beginning, until they are let go: what happens meanwhile happens in the
    middle of a forward, however fast the machine is.

    Attributes:
        begun: forwards so far.
    """

    def __init__(self) -> None:
        self.begun = 0
        self._allowed: float = 0
        self._condition = threading.Condition()

    def stand(self) -> None:
        """In the decoder's thread."""
        with self._condition:
            self.begun += 1
            self._condition.notify_all()
            assert self._condition.wait_for(lambda: self._allowed >= self.begun, TIMEOUT), "nobody let it go"

    def wait(self) -> None:
        """Return when a forward stands."""
        with self._condition:
            assert self._condition.wait_for(lambda: self.begun > self._allowed, TIMEOUT), "no forward came"

    def let_go(self, count: float) -> None:
        """Let so many more forwards be made."""
        with self._condition:
            self._allowed += count
            self._condition.notify_all()

    def step(self, count: int = 1) -> None:
        """Let `count` forwards go; return when the one behind them stands."""
        self.let_go(count)
        self.wait()

    def release(self) -> None:
        """Let all go."""
        self.let_go(float("inf"))


@dataclass
class Inside:
    """A server of the demo.

    Attributes:
        url: where it listens.
        service: its model.
        server: what serves it.
    """

    url: str
    service: Service
    server: uvicorn.Server

    @property
    def connections(self) -> set[Any]:
        """The protocols of its open connections."""
        return self.server.server_state.connections

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/batch/stats").json()
        return found

    def unfinished(self) -> int:
        """Sequences that are decoded or wait."""
        now = self.service.thread.load()
        return now.running + now.waiting

    @contextmanager
    def held(self) -> Iterator[Held]:
        """Forwards stand still until they are let go, and go by themselves again at the end."""
        backbone, held = self.service.thread.decoder.backbone, Held()
        forward = backbone.forward

        def standing(*arguments: Any, **named: Any) -> Any:
            held.stand()
            return forward(*arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backbone, "forward", standing)
            try:
                yield held
            finally:
                held.release()

    def gauge(self, name: str) -> float:
        found = re.search(rf"^dlm_{name} (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        assert found, f"no dlm_{name}"
        return float(found[1])


@contextmanager
def serving_inside(*, path: str = "demo", small_buffers: bool = False, **settings: Any) -> Iterator[Inside]:
    """A ready server of the model at `path` with such `ServerSettings`; with `small_buffers` the system holds little of
    what nobody reads."""
    service = Service.open(CheckpointSource(path=path), ServerSettings(names=("demo",), device="cpu", **settings))
    service.thread.start()
    listening = bind("127.0.0.1", 0)
    if small_buffers:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    app = build_app(service, ServerState("ready"))
    http = patient_for(service.settings.header_timeout)
    server = uvicorn.Server(uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None))
    loop = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    loop.start()
    wait_until(lambda: server.started, "the server listened")
    try:
        yield Inside(url_of(listening), service, server)
    finally:
        service.thread.drain(0.0)
        server.should_exit = True
        loop.join(TIMEOUT)
        service.close()
        listening.close()
