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
import uvicorn

from dlm.pipeline.model_source import CheckpointSource
from dlm.serving.app import build_app
from dlm.serving.patience import patient_for
from dlm.serving.processes import bind
from dlm.serving.service import Service
from dlm.serving.settings import ServerSettings
from dlm.serving.state import ServerState
from dlm.serving.worker import url_of


@dataclass
class Inside:
    """A server of the demo.

    Attributes:
        url: where it listens.
        service: its model.
    """

    url: str
    service: Service

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/batch/stats").json()
        return found

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
    try:
        yield Inside(url_of(listening), service)
    finally:
        service.thread.drain(0.0)
        server.should_exit = True
        loop.join(30)
        service.close()
        listening.close()
