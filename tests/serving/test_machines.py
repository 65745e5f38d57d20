"""Workers and router of different fleets, as on several machines."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.running import TIMEOUT, processes_of, python, started, wait_until
from tests.serving.fleets import Fleet, free_ports

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="fleets")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Fleet]]:
    """A worker, another worker, and the router in front of both."""
    port = free_ports(3)
    urls = f"worker_urls=[http://127.0.0.1:{port + 1},http://localhost:{port + 2}]"
    found: list[Fleet] = []
    with ExitStack() as stack:
        for index, mode in enumerate(("none", "none", "only")):
            folder = tmp_path_factory.mktemp(f"machine{index}")
            own = [f"port={port}"] if mode == "only" else [f"worker_base_port={port + 1 + index}"]
            own += [f"first_worker={index}"] if index == 1 else []
            command = python("dlm.serve", f"router={mode}", urls, *own, f"run_dir={folder}", "health_check_interval=1")
            process = stack.enter_context(started(command, folder))
            found.append(stack.enter_context(Fleet(process, port, folder)))
        for fleet in found:
            wait_until(lambda fleet=fleet: fleet.info().get("status") == "ready", "all were ready", fleet.process)
        yield found


def test_each_says_what_it_has(fleets: list[Fleet]) -> None:
    first, second, router = (fleet.info() for fleet in fleets)
    assert [len(info["workers"]) for info in (first, second, router)] == [1, 1, 2]
    assert first["workers"] + second["workers"] == router["workers"]
    answer = httpx.get(f"{fleets[2].url}/stats").json()
    assert [(worker["index"], worker["healthy"]) for worker in answer["workers"]] == [(0, True), (1, True)]
    assert [worker["url"] for worker in answer["workers"]] == router["workers"]


def test_results_are_found_wherever_they_are(fleets: list[Fleet]) -> None:
    with httpx.Client(base_url=fleets[2].url) as client:
        ids = [client.post("/v1/generate", json={"prompt": "Sort 7 3 12."}).json()["request_ids"][0] for _ in range(10)]
        assert {request_id % 2 for request_id in ids} == {0, 1}
        for request_id in ids:
            wait_until(
                lambda request_id=request_id: client.get(f"/v1/result/{request_id}").json()["status"] == "finished",
                "the result was there",
            )


def test_the_router_tells_of_a_worker_that_is_gone(fleets: list[Fleet]) -> None:
    workers, router = fleets[1], fleets[2]
    workers.process.send_signal(signal.SIGTERM)
    assert workers.process.wait(TIMEOUT) == 0
    assert workers.info()["status"] == "stopped"
    wait_until(lambda: router.info()["status"] == "degraded", "the router's server.json said so", router.process)
    answers = [httpx.get(f"{router.url}/v1/models") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 6


def test_sigterm_ends_each(fleets: list[Fleet]) -> None:
    for fleet in (fleets[0], fleets[2]):
        fleet.process.terminate()
        assert fleet.process.wait(TIMEOUT) == 0
        assert processes_of(fleet.folder) == []


def test_workers_that_never_come_are_named(tmp_path: Path) -> None:
    port = free_ports(2)
    command = python(
        "dlm.serve", "router=only", f"worker_urls=[http://127.0.0.1:{port}]", f"port={port + 1}", "start_timeout=1"
    )
    with started(command, tmp_path) as process:
        _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert f"not ready within start_timeout=1 seconds: http://127.0.0.1:{port}" in error
