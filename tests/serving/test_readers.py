"""Clients that read slowly or not at all hold nobody up, and are not waited for without end."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.running import wait_until
from tests.serving.inside import Inside, serving_inside

PATIENCE = 1.0
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
        client.settimeout(30)
        client.connect((url.host, url.port))
        head = f"Host: a\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
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
    before = server.stats()["total_batches_processed"]
    with caplog.at_level(logging.WARNING), asked(server, "POST", CHAT, LONG) as client:
        wait_until(lambda: server.stats()["running_requests"] == 4, 10, "it was decoded")
        for _ in range(3):
            answer = httpx.post(server.url + CHAT, json=QUICK, timeout=10)
            assert answer.json()["choices"][0]["message"]["content"] == "Sorted: 3 7 12"
        wait_until(lambda: server.stats()["running_requests"] == 0, 30, "nothing was decoded for it any more")
        assert server.stats()["total_batches_processed"] - before < 900
        found = read_to_the_end(client)
        assert b"[DONE]" not in found
        assert len(found) < 100_000
    assert caplog.records == []


def test_a_client_that_reads_slowly_gets_everything(server: Inside) -> None:
    with asked(server, "POST", CHAT, {**LONG, "gen_length": 128, "steps": 128, "n": 1}) as client:
        found, until = b"", time.monotonic() + 30
        while b"[DONE]" not in found:
            assert time.monotonic() < until
            time.sleep(0.05)
            found += client.recv(4096)
    revealed = sum(len(json.loads(line[6:])["dlm"].get("revealed", ())) for line in events(found))
    assert revealed == 128


def events(answer: bytes) -> list[str]:
    """The events of a chunked answer, those whose chunk did not come whole left out."""
    return [line for line in answer.decode().splitlines() if line.startswith("data: {")]


def test_an_answer_that_is_never_read_does_not_keep_its_connection(server: Inside) -> None:
    with asked(server, "GET", "/generation/algorithms") as client:
        time.sleep(4 * PATIENCE)
        assert len(read_to_the_end(client)) < 20_000
    assert len(httpx.get(f"{server.url}/generation/algorithms").content) > 20_000


def test_a_connection_in_use_is_kept(server: Inside) -> None:
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 0)) as client:
        client.settimeout(10)
        for _ in range(8):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                part = client.recv(1000)
                assert part, "the server closed it"
                answer += part
            time.sleep(PATIENCE / 3)
        assert client.recv(1000) == b""
