"""A client that leaves frees its canvas within one forward, whether it streams or waits."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.running import wait_until
from tests.serving.inside import Inside, serving_inside

BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "gen_length": 960,
    "block_length": 32,
    "steps": 960,
    "ignore_eos": True,
}
"""Hundreds of forwards."""


@pytest.fixture(scope="module", name="server")
def inside() -> Iterator[Inside]:
    with serving_inside(batch_size=2) as server:
        yield server


@pytest.mark.parametrize("stream", [True, False], ids=["streams", "waits"])
@pytest.mark.parametrize(("algorithm", "kept"), [("dual_cache", 900), ("basic", 0)])
@pytest.mark.parametrize("forwards", [3, 20])
def test_a_client_that_leaves_frees_its_canvas_within_a_forward(
    server: Inside, monkeypatch: pytest.MonkeyPatch, stream: bool, algorithm: str, kept: int, forwards: int
) -> None:
    """It leaves in the middle of a forward. With `dual_cache` keys and values are kept between them."""
    thread, made_at_cancel = server.service.thread, []
    cancel = thread.cancel

    def recorded(request_id: str) -> None:
        cancel(request_id)
        made_at_cancel.append(thread.decoder.stats.num_steps)

    monkeypatch.setattr(thread, "cancel", recorded)
    asked = {**BODY, "generation_algorithm": algorithm, "stream": stream, "dlm_events": stream or None}
    body = json.dumps(asked).encode()
    place = httpx.URL(server.url)
    with server.held() as held:
        with socket.create_connection((place.host, place.port or 0)) as client:
            head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + body)
            held.wait()
            held.step(forwards)
            assert server.gauge("sequences_running") == 1
            assert (server.gauge("arena_slots_used") > kept) == bool(kept)
        wait_until(lambda: bool(made_at_cancel), "the server noticed")
    wait_until(lambda: server.gauge("sequences_running") == 0, "its place was free")
    assert server.gauge("arena_slots_used") == server.gauge("sequences_waiting") == 0
    after = server.gauge("forwards_total")
    [told] = made_at_cancel
    assert after - told <= 1
