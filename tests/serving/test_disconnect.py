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
    "generation_algorithm": "dual_cache",
    "gen_length": 960,
    "block_length": 32,
    "steps": 960,
    "ignore_eos": True,
}
"""Hundreds of forwards with keys and values kept between them."""


@pytest.fixture(scope="module", name="server")
def inside() -> Iterator[Inside]:
    with serving_inside(batch_size=2) as server:
        yield server


@pytest.mark.parametrize("stream", [True, False], ids=["streams", "waits"])
@pytest.mark.parametrize("forwards", [3, 40])
def test_a_client_that_leaves_frees_its_canvas_within_a_forward(
    server: Inside, monkeypatch: pytest.MonkeyPatch, stream: bool, forwards: int
) -> None:
    thread, made_at_cancel = server.service.thread, []
    cancel = thread.cancel

    def recorded(request_id: str) -> None:
        cancel(request_id)
        made_at_cancel.append(thread.decoder.stats.num_steps)

    monkeypatch.setattr(thread, "cancel", recorded)
    begun = server.stats()["total_batches_processed"]
    body = json.dumps({**BODY, "stream": stream, "dlm_events": stream or None}).encode()
    place = httpx.URL(server.url)
    with socket.create_connection((place.host, place.port or 0)) as client:
        head = f"Host: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + body)
        wait_until(lambda: server.stats()["total_batches_processed"] >= begun + forwards, 30, "it was decoded")
        assert server.gauge("sequences_running") == 1
        assert server.gauge("arena_slots_used") > 900
    wait_until(lambda: server.gauge("sequences_running") == 0, 10, "its place was free")
    assert server.gauge("arena_slots_used") == server.gauge("sequences_waiting") == 0
    after = server.gauge("forwards_total")
    [told] = made_at_cancel
    print(f"\nforwards from the disconnect to the release: {after - told:.0f}")
    assert after - told <= 1
    assert after < begun + 500
