"""Under load: queue, deadlines, clients that leave, keys, connections that say nothing, and the end."""

from __future__ import annotations

import resource
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.running import wait_until
from tests.serving.server import Server, serving

CHAT = "/v1/chat/completions"
KEY = "a-key-of-tests"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
SLOW: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "generation_algorithm": "basic",
    "gen_length": 960,
    "steps": 960,
    "block_length": 960,
    "ignore_eos": True,
}
"""Hundreds of forwards over the whole canvas."""
QUICK: dict[str, Any] = {"messages": [{"role": "user", "content": "Sort 7 3 12."}], "max_tokens": 16}


@pytest.fixture(scope="module", name="small")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two at a time, two more wait."""
    limits = ("batch_size=2", "queue_size=2", "request_timeout=20", "header_timeout=2", "drain_timeout=1")
    with serving(tmp_path_factory.mktemp("small"), *limits, DLM_API_KEY=KEY) as server:
        yield server


def stats(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/batch/stats", headers=AUTHORIZED).json()
    return found


def idle(server: Server) -> bool:
    now = stats(server)
    return now["running_requests"] == now["pending_requests"] == now["arena_slots_used"] == 0


class Slow(threading.Thread):
    """A client with a slow request, who leaves when told to."""

    def __init__(self, server: Server, *, stream: bool = True) -> None:
        super().__init__(daemon=True)
        self.server, self.stream_, self.client = server, stream, httpx.Client(timeout=60)
        self.lines: list[str] = []
        self.leaving = threading.Event()
        self.start()

    def run(self) -> None:
        body = {**SLOW, "stream": True, "dlm_events": True}
        with self.client.stream("POST", self.server.url + CHAT, json=body, headers=AUTHORIZED) as answer:
            for line in answer.iter_lines():
                self.lines.append(line)
                if self.leaving.is_set():
                    return

    def leave(self) -> None:
        self.leaving.set()
        self.join(20)
        self.client.close()


def test_a_full_queue_is_told_and_health_answers_meanwhile(small: Server) -> None:
    clients = [Slow(small) for _ in range(4)]
    try:
        wait_until(lambda: stats(small)["pending_requests"] == 2, 20, "the queue was full")
        refused = httpx.post(small.url + CHAT, json=QUICK, headers=AUTHORIZED)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert "2 sequences are waiting" in refused.json()["error"]["message"]
        seconds = []
        with httpx.Client() as client:
            for _ in range(50):
                begun = time.perf_counter()
                assert client.get(f"{small.url}/health").status_code == 200
                seconds.append(time.perf_counter() - begun)
        assert sorted(seconds)[-2] < 0.5
    finally:
        for client in clients:
            client.leave()
    wait_until(lambda: idle(small), 20, "everybody's place was free")
    assert httpx.post(small.url + CHAT, json=QUICK, headers=AUTHORIZED).status_code == 200


def test_answers_on_one_connection_do_not_wait_for_acknowledgements(small: Server) -> None:
    seconds = []
    with httpx.Client() as client:
        for _ in range(60):
            begun = time.perf_counter()
            client.get(f"{small.url}/health")
            seconds.append(time.perf_counter() - begun)
    assert statistics.median(seconds) < 0.03  # with Nagle's algorithm on: 0.044


def test_a_client_that_leaves_frees_its_place_within_a_forward_or_two(small: Server) -> None:
    client = Slow(small)
    wait_until(lambda: len(client.lines) > 10, 20, "the stream began")
    assert stats(small)["arena_slots_used"] == 0  # the engine `full` keeps nothing
    assert stats(small)["running_requests"] == 1
    client.leave()
    wait_until(lambda: idle(small), 5, "its place was free")
    forwards = stats(small)["total_batches_processed"]
    time.sleep(0.3)
    assert stats(small)["total_batches_processed"] == forwards


def test_a_client_that_does_not_stream_and_leaves_is_forgotten_too(small: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(small.url + CHAT, json=SLOW, headers=AUTHORIZED, timeout=1.0)
    wait_until(lambda: idle(small), 5, "its place was free")


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "a key is needed"),
        ({"Authorization": "Bearer wrong"}, "wrong"),
        ({"Authorization": f"Basic {KEY}"}, "wrong"),
    ],
)
def test_without_the_key_nothing_but_health_and_the_page_is_open(
    small: Server, headers: dict[str, str], said: str
) -> None:
    for path in ("/v1/models", "/stats", "/metrics", "/batch/stats", "/generation/algorithms", "/openapi.json"):
        answer = httpx.get(small.url + path, headers=headers)
        assert answer.status_code == 401
        assert said in answer.json()["error"]["message"]
        assert KEY not in answer.text
    for path in ("/health", "/ready", "/v1/health", "/", "/static/app.js"):
        assert httpx.get(small.url + path, headers=headers).status_code == 200


def test_metrics_count_requests_and_forwards(small: Server) -> None:
    assert httpx.post(small.url + CHAT, json=QUICK, headers=AUTHORIZED).status_code == 200
    text = httpx.get(f"{small.url}/metrics", headers=AUTHORIZED).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['dlm_requests_total{outcome="ok",route="/v1/chat/completions"}']) >= 1
    assert float(values["dlm_forwards_total"]) >= 1
    assert float(values["dlm_completion_tokens_total"]) >= 5


@pytest.fixture(name="many")
def many_connections() -> Iterator[int]:
    """Thousands, as far as the system lets a process have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4000 if hard == resource.RLIM_INFINITY else min(4000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield wanted - 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_that_say_nothing_are_closed_and_keep_nobody_out(small: Server, many: int) -> None:
    place = urlsplit(small.url)
    address = (str(place.hostname), int(place.port or 0))
    silent = [socket.create_connection(address) for _ in range(many)]
    try:
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: httpx.post(small.url + CHAT, json=QUICK, headers=AUTHORIZED), range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        silent[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        for one in silent:
            one.settimeout(20)
            assert one.recv(100) in (b"", b"HTTP/1.1 408 Request Timeout\r\n")
    finally:
        for one in silent:
            one.close()


def test_a_body_that_does_not_come_is_not_waited_for(small: Server) -> None:
    place = urlsplit(small.url)
    with socket.create_connection((str(place.hostname), int(place.port or 0))) as one:
        one.settimeout(20)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\nAuthorization: Bearer {KEY}\r\n\r\n{{"
        one.sendall(head.encode())
        assert one.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_deadline_ends_a_request(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("late"), "request_timeout=0.5") as server:
        answer = httpx.post(server.url + CHAT, json=SLOW, timeout=30)
        assert answer.status_code == 504
        assert "request_timeout=0.5" in answer.json()["error"]["message"]
        wait_until(lambda: idle(server), 5, "its place was free")


@pytest.mark.parametrize(("signum", "drain", "code"), [(signal.SIGTERM, 60, 0), (signal.SIGINT, 0.2, 1)])
def test_the_end_under_load_is_clean(
    tmp_path_factory: pytest.TempPathFactory, signum: int, drain: float, code: int
) -> None:
    with serving(tmp_path_factory.mktemp("end"), f"drain_timeout={drain}") as server:
        body = {**SLOW, "gen_length": 192, "block_length": 192, "steps": 192}
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(httpx.post, server.url + CHAT, json=body, timeout=100) for _ in range(2)]
            wait_until(lambda: stats(server)["running_requests"] == 2, 20, "the requests ran")
            server.process.send_signal(signum)
            wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503, 5, "it was draining")
            late = httpx.post(server.url + CHAT, json=QUICK)
            answers = [one.result() for one in asked]
        assert late.status_code == 503
        assert {answer.status_code for answer in answers} == ({200} if code == 0 else {503})
        assert server.process.wait(30) == code
