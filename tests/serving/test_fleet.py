"""Two CPU workers behind the router: one server to its clients, also when a worker dies."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import processes_of, python, run, started, wait_until
from tests.serving.fleets import Fleet, free_ports

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
QUICK: dict[str, Any] = {"messages": [{"role": "user", "content": "Sort 7 3 12."}], "max_tokens": 16}


@pytest.fixture(scope="module", name="fleet")
def running_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder, port = tmp_path_factory.mktemp("fleet"), free_ports(3)
    places = (f"port={port}", f"worker_base_port={port + 1}", f"run_dir={folder}")
    with started(python("dlm.serve", "devices=2", "health_check_interval=1", *places), folder) as process:
        fleet = Fleet(process, port, folder)
        wait_until(lambda: fleet.info().get("status") == "ready", 120, "the fleet was ready", process)
        yield fleet
        if process.poll() is None:
            process.terminate()
            assert process.wait(60) == 0


def test_both_workers_answer_and_any_tells_of_all(fleet: Fleet) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx.post(fleet.url + CHAT, json=QUICK, timeout=60), range(16)))
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"Sorted: 3 7 12"}
    stats = httpx.get(f"{fleet.url}/stats").json()
    assert (stats["total_workers"], stats["healthy_workers"]) == (2, 2)
    assert all(worker["requests_served"] >= 6 for worker in stats["workers"])


def test_polling_finds_every_result_through_the_router(fleet: Fleet) -> None:
    with httpx.Client(base_url=fleet.url, timeout=60) as client:
        ids = [
            client.post("/v1/generate", json={"prompt": "Sort 7 3 12."}).json()["request_ids"][0] for _ in range(100)
        ]
        assert len(set(ids)) == 100
        until = time.monotonic() + 60
        waiting = set(ids)
        while waiting:
            assert time.monotonic() < until
            for request_id in list(waiting):
                answer = client.get(f"/v1/result/{request_id}")
                assert answer.status_code == 200, answer.text
                if answer.json()["status"] == "finished":
                    waiting.remove(request_id)


def test_a_killed_worker_comes_back_and_no_client_hangs(fleet: Fleet) -> None:
    victim = fleet.worker(0)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(httpx.post, fleet.url + CHAT, json=QUICK, timeout=60) for _ in range(60)]
        os.kill(victim, signal.SIGKILL)
        answers = [one.result() for one in asked]
    good = [answer for answer in answers if answer.status_code == 200]
    assert len(good) >= 20
    assert all(answer.status_code in (200, 500, 502, 503) for answer in answers)
    wait_until(lambda: fleet.healthy() == 2, 60, "two workers were healthy again")
    wait_until(lambda: fleet.info()["status"] == "ready", 10, "the fleet said so")
    assert fleet.worker(0) != victim


def test_a_taken_port_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(python("dlm.serve", "devices=2", f"port={port}", "worker_base_port=9001"), tmp_path)
    assert result.returncode == 2
    assert f"port={port}" in result.stderr
    assert "choose another" in result.stderr


def test_sigterm_ends_all_of_it(fleet: Fleet) -> None:
    fleet.process.terminate()
    assert fleet.process.wait(60) == 0
    assert fleet.info()["status"] == "stopped"
    assert processes_of(fleet.folder) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{fleet.url}/health")
