"""Two CPU workers behind the router: one server to its clients, also when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import TIMEOUT, processes_of, python, run, started, wait_until
from tests.serving.fleets import Fleet, free_ports

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
QUICK: dict[str, Any] = {"messages": [{"role": "user", "content": "Sort 7 3 12."}], "max_tokens": 16}
LONG: dict[str, Any] = {**QUICK, "max_tokens": 960, "steps": 960, "generation_algorithm": "basic", "stream": True}
LONG["ignore_eos"] = True
KEY = "k-4711"


@pytest.fixture(scope="module", name="fleet")
def running_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder, port = tmp_path_factory.mktemp("fleet"), free_ports(3)
    places = (f"port={port}", f"worker_base_port={port + 1}", f"run_dir={folder}")
    command = python("dlm.serve", "devices=2", "health_check_interval=1", *places)
    with started(command, folder, DLM_API_KEY=KEY) as process, Fleet(process, port, folder, KEY) as fleet:
        wait_until(lambda: fleet.info().get("status") == "ready", "the fleet was ready", process)
        yield fleet
        if process.poll() is None:
            process.terminate()
            assert process.wait(TIMEOUT) == 0


def test_both_workers_answer_and_any_tells_of_all(fleet: Fleet) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: fleet.client.post(CHAT, json=QUICK), range(16)))
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"Sorted: 3 7 12"}
    wait_until(lambda: fleet.healthy() == 2, "both were healthy")
    stats = fleet.client.get("/stats").json()
    assert stats["total_workers"] == 2
    assert all(worker["requests_served"] >= 6 for worker in stats["workers"])
    assert len(fleet.client.get("/stats?fleet=false").json()["workers"]) == 1


def test_polling_finds_every_result_through_the_router(fleet: Fleet) -> None:
    client = fleet.client
    ids = [client.post("/v1/generate", json={"prompt": "Sort 7 3 12."}).json()["request_ids"][0] for _ in range(100)]
    assert len(set(ids)) == 100
    waiting = set(ids)

    def is_finished(request_id: int) -> bool:
        answer = client.get(f"/v1/result/{request_id}")
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["status"] == "finished")

    def all_are_finished() -> bool:
        waiting.difference_update([request_id for request_id in waiting if is_finished(request_id)])
        return not waiting

    wait_until(all_are_finished, "all were finished")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/generate", "/v1/models", "/stats", "/metrics"])
def test_every_route_wants_the_key(fleet: Fleet, path: str) -> None:
    method = "POST" if path in ("/v1/chat/completions", "/v1/generate") else "GET"
    body = {**QUICK, "prompt": "Hi"} if method == "POST" else None
    assert fleet.client.request(method, path, json=body).status_code == 200
    answer = httpx.request(method, fleet.url + path, json=body)
    assert answer.status_code == 401, answer.text
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/add_worker?url=http://127.0.0.1:1"),
        ("POST", "/remove_worker?url=http://127.0.0.1:1"),
        ("POST", "/workers"),
        ("GET", "/list_workers"),
        ("GET", "/workers"),
        ("POST", "/flush_cache"),
        ("GET", "/get_loads"),
    ],
)
def test_nobody_can_tell_the_router_what_to_do(fleet: Fleet, method: str, path: str) -> None:
    assert httpx.request(method, fleet.url + path).status_code == 401
    answer = fleet.client.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b'{"messages": 3}', 400),
        (b"\xff", 400),
        (b'{"messages": [], "n": "two"}', 400),
        (b"x" * (5 << 20), 413),
    ],
)
def test_errors_are_openais_and_not_the_routers(fleet: Fleet, content: bytes, status: int) -> None:
    answer = fleet.client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_streams_come_as_they_are_made(fleet: Fleet) -> None:
    """Of 128 forwards the first is told while others are to come; `test_router.py` shows it event by event."""
    body = {**LONG, "max_tokens": 128, "steps": 128, "dlm_events": True}
    with fleet.client.stream("POST", CHAT, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        assert any('"step"' in line for line in lines)
        assert sum(worker["running"] for worker in fleet.client.get("/stats").json()["workers"]) == 1
        assert [*lines][-1] == "data: [DONE]"


def test_ids_and_the_page_come_through(fleet: Fleet) -> None:
    assert fleet.client.post(CHAT, json=QUICK, headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
    assert "<html" in httpx.get(f"{fleet.url}/").text
    assert httpx.get(f"{fleet.url}/static/../../pyproject.toml").status_code in (401, 404)


def test_a_killed_worker_comes_back_and_no_client_hears_of_it(fleet: Fleet) -> None:
    victim = fleet.worker(0)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(fleet.client.post, CHAT, json=QUICK) for _ in range(60)]
        os.kill(victim, signal.SIGKILL)
        answers = [one.result() for one in asked]
    assert {answer.status_code for answer in answers} == {200}
    wait_until(lambda: fleet.healthy() == 2, "two workers were healthy again")
    wait_until(lambda: fleet.info()["status"] == "ready", "the fleet said so")
    assert fleet.worker(0) != victim


def test_a_stream_of_a_killed_worker_ends_with_an_error(fleet: Fleet) -> None:
    with fleet.client.stream("POST", CHAT, json={**LONG, "dlm_events": True}) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if '"event":"step"' in line.replace(" ", ""))
        busy = next(one["index"] for one in fleet.client.get("/stats").json()["workers"] if one["running"])
        os.kill(fleet.worker(busy), signal.SIGKILL)
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert json.loads(events[-1])["error"]["code"] == "worker_lost"
    wait_until(lambda: fleet.healthy() == 2, "two workers were healthy again")


def test_a_taken_port_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(python("dlm.serve", "devices=2", f"port={port}", "worker_base_port=9001"), tmp_path)
    assert result.returncode == 2
    assert f"port={port}" in result.stderr
    assert "choose another" in result.stderr


def test_sigterm_ends_all_of_it(fleet: Fleet) -> None:
    fleet.process.terminate()
    assert fleet.process.wait(TIMEOUT) == 0
    assert fleet.info()["status"] == "stopped"
    assert processes_of(fleet.folder) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{fleet.url}/health")
