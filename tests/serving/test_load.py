"""Under load: queue, deadlines, clients that leave, keys, connections that say nothing, and the end."""

from __future__ import annotations

import resource
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.running import TIMEOUT, wait_until
from tests.serving.held_server import HOLD
from tests.serving.inside import Inside, serving_inside
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
FORWARDS = 960
"""Of `SLOW`."""
QUICK: dict[str, Any] = {"messages": [{"role": "user", "content": "Sort 7 3 12."}], "max_tokens": 16}


@pytest.fixture(scope="module", name="small")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a key, and little patience."""
    with serving(tmp_path_factory.mktemp("small"), "header_timeout=2", DLM_API_KEY=KEY) as server:
        yield server


@pytest.fixture(scope="module", name="narrow")
def narrow_server() -> Iterator[Inside]:
    """Two at a time, two more wait."""
    with serving_inside(batch_size=2, queue_size=2, request_timeout=2 * TIMEOUT) as server:
        yield server


def test_a_full_queue_is_told_and_health_answers_meanwhile(narrow: Inside) -> None:
    leaving = threading.Event()

    def ask() -> None:
        with httpx.stream("POST", narrow.url + CHAT, json={**SLOW, "stream": True, "dlm_events": True}) as answer:
            for _ in answer.iter_lines():
                if leaving.is_set():
                    return

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    with narrow.held() as held:
        for client in clients:
            client.start()
        wait_until(lambda: narrow.unfinished() == 4, "all had asked")
        held.step(2)
        found = narrow.stats()
        assert (found["running_requests"], found["pending_requests"]) == (2, 2)
        refused = httpx.post(narrow.url + CHAT, json=QUICK)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert "2 sequences are waiting" in refused.json()["error"]["message"]
        with httpx.Client() as client:
            assert {client.get(f"{narrow.url}/health").status_code for _ in range(50)} == {200}
        leaving.set()
    for client in clients:
        client.join(TIMEOUT)
    wait_until(lambda: narrow.unfinished() == 0, "everybody's place was free")
    assert narrow.stats()["arena_slots_used"] == 0
    assert httpx.post(narrow.url + CHAT, json=QUICK).status_code == 200


def test_answers_on_one_connection_do_not_wait_for_acknowledgements(narrow: Inside) -> None:
    """Nagle's algorithm is off."""
    with httpx.Client(base_url=narrow.url) as client:
        assert client.get("/health").status_code == 200
        sockets = [one.transport.get_extra_info("socket") for one in narrow.connections]
        assert sockets
        assert all(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "a key is required"),
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
    silent = [socket.create_connection(address, TIMEOUT) for _ in range(many)]
    try:
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: httpx.post(small.url + CHAT, json=QUICK, headers=AUTHORIZED), range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        silent.append(socket.create_connection(address, TIMEOUT))
        silent[-1].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for one in silent:
            assert one.recv(100) in (b"", b"HTTP/1.1 408 Request Timeout\r\n")
    finally:
        for one in silent:
            one.close()


def test_a_body_that_does_not_come_is_not_waited_for(small: Server) -> None:
    place = urlsplit(small.url)
    with socket.create_connection((str(place.hostname), int(place.port or 0)), TIMEOUT) as one:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nAuthorization: Bearer {KEY}\r\n\r\n{{"
        )
        one.sendall(head.encode())
        assert one.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_deadline_ends_a_request() -> None:
    """It comes in the middle of a forward."""
    with serving_inside(request_timeout=0.5) as server, server.held() as held:
        answer = httpx.post(server.url + CHAT, json=SLOW)
        assert answer.status_code == 504
        assert "request_timeout=0.5" in answer.json()["error"]["message"]
        held.release()
        wait_until(lambda: server.unfinished() == 0, "its place was free")
        assert held.begun <= 1


@pytest.mark.parametrize(("signum", "drain", "code"), [(signal.SIGTERM, 3600, 0), (signal.SIGINT, 0.001, 1)])
def test_the_end_under_load_is_clean(
    tmp_path_factory: pytest.TempPathFactory, signum: int, drain: float, code: int
) -> None:
    """The signal comes in the middle of a forward. With time to drain all is finished, else what is not is told."""
    folder = tmp_path_factory.mktemp("end")
    extra = {"module": "tests.serving.held_server", HOLD: str(folder / "hold"), "PYTHONPATH": str(Path.cwd())}
    steps = 32 if code == 0 else FORWARDS
    body = {**SLOW, "gen_length": steps, "block_length": steps, "steps": steps}
    with serving(folder, f"drain_timeout={drain}", **extra) as server, ThreadPoolExecutor(2) as pool:
        (folder / "hold").touch()
        asked = [pool.submit(httpx.post, server.url + CHAT, json=body) for _ in range(2)]
        wait_until(lambda: unfinished(server) == 2, "the requests were there")
        server.process.send_signal(signum)
        if code == 0:
            wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503, "it was draining")
            assert httpx.post(server.url + CHAT, json=QUICK).status_code == 503
        (folder / "hold").unlink()
        assert {one.result().status_code for one in asked} == ({200} if code == 0 else {503})
        assert server.process.wait(TIMEOUT) == code


def unfinished(server: Server) -> int:
    now = httpx.get(f"{server.url}/batch/stats").json()
    return int(now["running_requests"] + now["pending_requests"])
