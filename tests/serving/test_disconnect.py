"""A client that leaves frees its canvas within one forward, whether it streams or waits."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn

from dlm.pipeline.model_source import CheckpointSource
from dlm.serving.app import build_app
from dlm.serving.service import Service
from dlm.serving.settings import ServerSettings
from dlm.serving.state import ServerState
from dlm.serving.worker import bind, url_of
from tests.running import wait_until

BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "generation_algorithm": "dual_cache",
    "gen_length": 960,
    "block_length": 32,
    "steps": 960,
    "ignore_eos": True,
}
"""Hundreds of forwards with keys and values kept between them."""


@dataclass
class Watched:
    """A server in this process.

    Attributes:
        url: where it listens.
        service: its model.
        forwards_at_cancel: forwards that were made when it was told that a request is not wanted any more.
    """

    url: str
    service: Service
    forwards_at_cancel: list[int] = field(default_factory=list)

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/batch/stats").json()
        return found

    def gauge(self, name: str) -> float:
        found = re.search(rf"^dlm_{name} (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        assert found
        return float(found[1])


@pytest.fixture(scope="module", name="watched")
def watched_server() -> Iterator[Watched]:
    service = Service.open(CheckpointSource(path="demo"), ServerSettings(names=("demo",), device="cpu", batch_size=2))
    service.thread.start()
    listening = bind("127.0.0.1", 0)
    app = build_app(service, ServerState("ready"))
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None))
    loop = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    loop.start()
    found = Watched(url_of(listening), service)
    cancel = service.thread.cancel

    def recorded(request_id: str) -> None:
        cancel(request_id)
        found.forwards_at_cancel.append(service.thread.decoder.stats.num_steps)

    service.thread.cancel = recorded  # type: ignore[method-assign]  # heard on its way
    yield found
    service.thread.drain(0.0)
    server.should_exit = True
    loop.join(30)
    service.close()
    listening.close()


@pytest.mark.parametrize("stream", [True, False], ids=["streams", "waits"])
@pytest.mark.parametrize("forwards", [3, 40])
def test_a_client_that_leaves_frees_its_canvas_within_a_forward(watched: Watched, stream: bool, forwards: int) -> None:
    watched.forwards_at_cancel.clear()
    begun = watched.stats()["total_batches_processed"]
    body = json.dumps({**BODY, "stream": stream, "dlm_events": stream or None}).encode()
    place = httpx.URL(watched.url)
    with socket.create_connection((place.host, place.port or 0)) as client:
        head = f"Host: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + body)
        wait_until(lambda: watched.stats()["total_batches_processed"] >= begun + forwards, 30, "it was decoded")
        assert watched.gauge("sequences_running") == 1
        assert watched.gauge("arena_slots_used") > 900
    wait_until(lambda: watched.gauge("sequences_running") == 0, 10, "its place was free")
    assert watched.gauge("arena_slots_used") == watched.gauge("sequences_waiting") == 0
    after = watched.gauge("forwards_total")
    assert len(watched.forwards_at_cancel) == 1
    assert after - watched.forwards_at_cancel[0] <= 1
    assert after < begun + 500
    print(f"\nforwards from the disconnect to the release: {after - watched.forwards_at_cancel[0]:.0f}")
