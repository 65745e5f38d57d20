"""What the OpenAPI document promises is what the server does, with requests that nobody has thought of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from dlm.serving import shapes
from tests.running import python, run
from tests.serving.server import Server, serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
DECODED = ("/v1/chat/completions", "/v1/completions", "/v1/generate", "/v1/generate_batch")


@pytest.fixture(scope="module", name="short")
def short_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Canvases are short, so that what is accepted is decoded quickly."""
    with serving(tmp_path_factory.mktemp("schema"), "max_model_len=64", "batch_size=16") as server:
        yield server


@pytest.mark.slow
def test_generated_requests_are_answered_as_documented(short: Server, tmp_path: Path) -> None:
    phases = ("--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--generation-deterministic")
    command = python("schemathesis.cli", "run", f"{short.url}/openapi.json", "--checks", CHECKS, *phases, "--no-color")
    result = run(command, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search(r"(\d+) generated, (\d+) passed", result.stdout)
    assert found, result.stdout
    assert int(found[1]) > 1000
    text = httpx.get(f"{short.url}/metrics").text
    for route in DECODED:
        count = re.search(rf'dlm_requests_total{{outcome="ok",route="{route}"}} (\d+)', text)
        assert count, f"nothing that was sent to {route} was answered"
    print(f"\n{found[0]}")
    for line in text.splitlines():
        if line.startswith("dlm_requests_total"):
            print(line)


def answer_of(server: Server, shape: Any, path: str, body: dict[str, Any] | None = None) -> Any:
    """What is answered, after it was held to its shape."""
    url = server.url + path
    answer = httpx.get(url) if body is None else httpx.post(url, json=body, timeout=60)
    answer.raise_for_status()
    return TypeAdapter(shape).validate_json(answer.content, strict=True)


def test_answers_have_no_field_that_is_not_documented(short: Server) -> None:
    question, few = {"messages": [{"role": "user", "content": "Hi"}]}, {"max_tokens": 16, "seed": 1}
    answer_of(short, shapes.ChatAnswer, "/v1/chat/completions", {**question, **few, "logprobs": True, "n": 2})
    answer_of(short, shapes.TextAnswer, "/v1/completions", {"prompt": ["a", "b"], **few, "logprobs": 1})
    echo = {"prompt": "Hi", "echo": True, "logprobs": 1}
    for tokens in (0, 8):
        answer_of(short, shapes.TextAnswer, "/v1/completions", {**echo, "max_tokens": tokens})
    tickets = answer_of(short, shapes.Tickets, "/v1/generate_batch", {"prompts": ["Hi"] * 3, **few})
    waiting = set(tickets.request_ids)
    while waiting:
        for request_id in list(waiting):
            if isinstance(answer_of(short, shapes.Result, f"/v1/result/{request_id}"), shapes.Finished):
                waiting.remove(request_id)
    for shape, path in (
        (shapes.ModelList, "/v1/models"),
        (shapes.Catalogue, "/generation/algorithms"),
        (shapes.BatchStats, "/batch/stats"),
        (shapes.FleetStats, "/stats"),
        (shapes.Status, "/health"),
        (shapes.Status, "/ready"),
        (shapes.Status, "/v1/health"),
    ):
        answer_of(short, shape, path)


def test_the_document_has_every_route_ranges_and_no_422(short: Server) -> None:
    document = httpx.get(f"{short.url}/openapi.json").json()
    assert set(DECODED) < set(document["paths"])
    assert "422" not in str(document)
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["max_tokens"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 8192}
    assert fields["top_p"]["anyOf"][0]["exclusiveMinimum"] == 0
    assert fields["model"]["anyOf"][0]["enum"] == ["demo"]
    assert "dual_cache" in fields["generation_algorithm"]["anyOf"][0]["enum"]
    assert fields["threshold"]["description"].startswith("Positions")
