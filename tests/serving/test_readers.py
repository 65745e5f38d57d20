"""Clients that read slowly or not at all hold nobody up, and are not waited for without end. When the server loses its
patience is decided in `test_patience.py`; here it does."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.running import TIMEOUT, wait_until
from tests.serving.inside import Inside, serving_inside

PATIENCE = 0.5
CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "generation_algorithm": "dual_cache",
    "gen_length": 960,
    "steps": 960,
    "n": 4,
    "ignore_eos": True,
    "stream": True,
    "dlm_events": True,
}
FORWARDS = 960
"""Of `LONG`."""
QUICK: dict[str, Any] = {"messages": [{"role": "user", "content": "Sort 7 3 12."}], "max_tokens": 16}


@pytest.fixture(scope="module", name="server")
def impatient_server() -> Iterator[Inside]:
    with serving_inside(small_buffers=True, batch_size=5, header_timeout=PATIENCE) as server:
        yield server


@contextmanager
def asked(server: Inside, method: str, path: str, body: Any = None) -> Iterator[socket.socket]:
    """A request whose answer is not read."""
    content = b"" if body is None else json.dumps(body).encode()
    url = httpx.URL(server.url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(TIMEOUT)
        client.connect((url.host, url.port))
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        client.sendall(f"{method} {path} HTTP/1.1\r\n{head}".encode() + content)
        yield client


def read_to_the_end(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection, orderly or not."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        return b"".join(parts)
    return b"".join(parts)


def test_a_stream_that_nobody_reads_is_given_up_and_frees_its_canvas(
    server: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of the forwards fill what the system holds; the others are not made before it has been dropped, so that the
    server's patience ends before the answer does."""
    wait_until(lambda: not server.connections, "those of other tests were gone")
    with caplog.at_level(logging.WARNING), server.held() as held, asked(server, "POST", CHAT, LONG) as client:
        held.wait()
        [connection] = server.connections
        with ThreadPoolExecutor(1) as others:
            answers = others.submit(lambda: [httpx.post(server.url + CHAT, json=QUICK).json() for _ in range(3)])
            held.let_go(FORWARDS // 2)
            wait_until(lambda: connection not in server.connections, "it was dropped")
            held.release()
        assert [one["choices"][0]["message"]["content"] for one in answers.result()] == ["Sorted: 3 7 12"] * 3
        wait_until(lambda: server.unfinished() == 0, "nothing was decoded for it any more")
        assert held.begun < FORWARDS
        found = read_to_the_end(client)
        assert b"[DONE]" not in found
        assert len(found) < 100_000
    assert caplog.records == []


def test_a_client_that_reads_slowly_gets_everything() -> None:
    """It reads nothing before all has been written, and then a little at a time."""
    with (
        serving_inside(small_buffers=True, header_timeout=2 * TIMEOUT) as server,
        asked(server, "POST", CHAT, {**LONG, "gen_length": 128, "steps": 128, "n": 1}) as client,
    ):
        wait_until(lambda: server.stats()["total_batches_processed"] >= 128 and not server.unfinished(), "it was made")
        assert any(one.transport.get_write_buffer_size() for one in server.connections), "there is more to read"
        found = b""
        while b"[DONE]" not in found:
            part = client.recv(100)
            assert part, "the server ended it"
            found += part
    revealed = sum(len(json.loads(line[6:])["dlm"].get("revealed", ())) for line in events(found))
    assert revealed == 128


def events(answer: bytes) -> list[str]:
    """The events of a chunked answer, those whose chunk did not come whole left out."""
    return [line for line in answer.decode().splitlines() if line.startswith("data: {")]


def test_an_answer_that_is_never_read_does_not_keep_its_connection(server: Inside) -> None:
    with asked(server, "GET", "/generation/algorithms") as client:
        wait_until(lambda: bool(server.connections), "it was accepted")
        wait_until(lambda: not server.connections, "it was dropped")
        assert len(read_to_the_end(client)) < 20_000
    assert len(httpx.get(f"{server.url}/generation/algorithms").content) > 20_000


def test_a_connection_serves_several_requests_and_is_closed_when_none_comes(server: Inside) -> None:
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 0), TIMEOUT) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
        found = read_to_the_end(client)
    assert found.count(b'{"status":"ok"}') == 8
