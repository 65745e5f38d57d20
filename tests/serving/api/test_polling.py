"""Submit and poll, as clients of the older server do it."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest

from dlm.serving.api import polling
from dlm.serving.api.polling import Results
from dlm.serving.engine.queued import QueueFull
from dlm.serving.http.errors import ApiError
from tests.clock import Clock
from tests.running import wait_until
from tests.serving.controlled import controlled
from tests.serving.inside import Inside, serving_inside
from tests.serving.server import Server


def poll(server: Server | Inside, request_id: int) -> dict[str, Any]:
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


def test_ids_tell_the_worker_and_cannot_be_guessed() -> None:
    results, other = Results(1, 3, 60.0), Results(2, 3, 60.0)
    ids = [results.open() for _ in range(100)]
    assert {results.owner(request_id) for request_id in ids} == {1}
    assert results.owner(other.open()) == 2
    gaps = [abs(one - other) for one, other in itertools.pairwise(sorted(ids))]
    assert min(gaps) > 2**64
    assert all(results.get(request_id + step) is None for request_id in ids for step in range(-30, 31) if step)


def test_results_want_the_key_and_the_exact_id() -> None:
    with controlled() as (inside, client):
        [request_id] = client.post("/v1/generate", json={"prompt": "Hi", "max_tokens": 8}).json()["request_ids"]
        path = f"/v1/result/{request_id}"
        assert client.get(path).status_code == 200
        for headers in ({}, {"Authorization": "Bearer another-key"}):
            assert httpx.get(inside.url + path, headers=headers).status_code == 401
        for other in (request_id + 1, request_id - 1, request_id % 2**63, 0, -1, 2**300, "9" * 4300):
            assert client.get(f"/v1/result/{other}").status_code == 404
        assert client.get(f"/v1/result/{'9' * 5000}").status_code == 400


@pytest.mark.parametrize("fault", [ValueError("odd"), MemoryError("full"), ApiError(503, "no")])
def test_whatever_fails_a_submitted_request_ends_and_expires(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: Any) -> Any:
        raise fault

    clock = Clock()
    monkeypatch.setattr(polling.Sample, "of", breaks)
    monkeypatch.setattr(polling, "time", clock)
    with serving_inside(result_ttl=60.0) as inside:
        body = {"prompts": ["Hi", "Ho"], "max_tokens": 8}
        ids = httpx.post(f"{inside.url}/v1/generate_batch", json=body).json()["request_ids"]
        for request_id in ids:
            told = poll(inside, request_id)
            assert told["status"] == "failed"
            assert told["error"]["type"] == "server_error" or isinstance(fault, ApiError)
        clock.sleep(61.0)
        assert [httpx.get(f"{inside.url}/v1/result/{one}").status_code for one in ids] == [404, 404]
    assert ("a submitted request failed" in caplog.text) == (not isinstance(fault, ApiError))


@pytest.mark.parametrize("fault", [RuntimeError("odd"), QueueFull()])
def test_a_batch_that_cannot_be_submitted_leaves_nothing_behind(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_inside() as inside, inside.held() as held:
        thread, count = inside.service.thread, 0
        submit = thread.submit

        def breaks(*given: Any) -> None:
            nonlocal count
            count += 1
            if count == 3:
                raise fault
            submit(*given)

        monkeypatch.setattr(thread, "submit", breaks)
        for path in ("/v1/generate_batch", "/v1/completions"):
            count, field = 0, "prompts" if "batch" in path else "prompt"
            answer = httpx.post(inside.url + path, json={field: ["Hi"] * 4, "max_tokens": 8})
            assert answer.status_code == (429 if isinstance(fault, QueueFull) else 500), answer.text
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        held.release()
        wait_until(lambda: inside.unfinished() == 0, "nothing was left")


def test_when_the_decoder_is_dead_all_that_is_asked_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> Any:
        raise RuntimeError("broken")

    with controlled() as (inside, client):
        probes = ("/health", "/v1/health", "/health/")
        assert [client.get(path).json() for path in probes] == [{"status": "ok"}] * 3
        assert client.get("/ready").status_code == 200
        monkeypatch.setattr(inside.service.thread.decoder, "step", breaks)
        monkeypatch.setattr(inside.service.thread.decoder, "step_apart", breaks)
        [request_id] = client.post("/v1/generate", json={"prompt": "Hi"}).json()["request_ids"]
        wait_until(lambda: not inside.service.thread.alive, "the decoder's thread had ended")
        for path in (*probes, "/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()) == (503, {"status": "decoder ended"}), path
        wait_until(lambda: bool(client.get(f"/v1/result/{request_id}").json()["status"] == "failed"), "it was told")
        assert client.post("/v1/generate", json={"prompt": "Hi"}).status_code == 503


def test_results_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(polling, "time", clock)
    results = Results(0, 1, 60.0)
    request_id = results.open()
    clock.sleep(100.0)
    assert results.get(request_id) == {"request_id": request_id, "status": "running", "text": None}
    results.close(request_id, status="finished", text="a")
    assert results.get(request_id) == {"request_id": request_id, "status": "finished", "text": "a"}
    clock.sleep(60.0)
    assert results.get(request_id) is not None
    clock.sleep(0.001)
    assert results.get(request_id) is None
