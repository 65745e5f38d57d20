"""Submit and poll, as clients of the older server do it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from dlm.serving import polling
from dlm.serving.polling import LIFE, Results
from tests.clock import Clock
from tests.running import wait_until
from tests.serving.server import Server


def poll(server: Server, request_id: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def ended() -> bool:
        found.update(httpx.get(f"{server.url}/v1/result/{request_id}").json())
        assert found["status"] != "running" or found["text"] is None
        return bool(found["status"] != "running")

    wait_until(ended, f"request {request_id} ended")
    return found


def test_one_prompt_and_a_batch_are_submitted_and_polled(server: Server) -> None:
    body: dict[str, Any] = {"temperature": 0.0, "gen_length": 32}
    one = httpx.post(f"{server.url}/v1/generate", json={"prompt": "Sort 7 3 12.", **body}).json()
    many = httpx.post(
        f"{server.url}/v1/generate_batch", json={"prompts": ["Sort 7 3 12.", "What is 3 + 4?"], **body}
    ).json()
    assert one["status"] == many["status"] == "submitted"
    assert len(set(one["request_ids"] + many["request_ids"])) == 3
    results = [poll(server, request_id) for request_id in one["request_ids"] + many["request_ids"]]
    assert [result["status"] for result in results] == ["finished"] * 3
    assert results[0]["text"] == results[1]["text"] == "Sorted: 3 7 12"
    assert results[0]["usage"] == {"prompt_tokens": 15, "completion_tokens": 5, "total_tokens": 20}


def test_a_batch_with_a_wrong_prompt_is_refused_whole(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/generate_batch", json={"prompts": ["Hi", "word " * 1500]})
    assert answer.status_code == 400
    assert "positions" in answer.json()["error"]["message"]


def test_health_and_unknown_ids(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/v1/result/999999").status_code == 404
    assert httpx.get(f"{server.url}/v1/result/abc").status_code == 400


def test_ids_tell_the_worker_and_no_life_repeats_those_of_another() -> None:
    first, again, other = Results(1, 3, 0, 60.0), Results(1, 3, 1, 60.0), Results(2, 3, 0, 60.0)
    ids = [results.open() for results in (first, first, again, other)]
    assert ids == [1, 4, LIFE * 3 + 1, 2]
    assert [first.owner(request_id) for request_id in ids] == [1, 1, 1, 2]


def test_results_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(polling, "time", clock)
    results = Results(0, 1, 0, 60.0)
    request_id = results.open()
    clock.sleep(100.0)
    assert results.get(request_id) == {"request_id": 0, "status": "running", "text": None}
    results.close(request_id, status="finished", text="a")
    assert results.get(request_id) == {"request_id": 0, "status": "finished", "text": "a"}
    clock.sleep(60.0)
    assert results.get(request_id) is not None
    clock.sleep(0.001)
    assert results.get(request_id) is None
