"""What the OpenAPI document promises is what the server does, with requests that nobody has thought of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from dlm.demo import CHECKPOINT
from dlm.serving.schemas import control_responses as control_shapes
from dlm.serving.schemas import responses as shapes
from dlm.serving.settings import KEY_VARIABLE
from tests.running import python, run
from tests.serving.controlled import HEADERS, KEY
from tests.serving.server import Server, serving

CHECKS = ("--checks", "all", "--exclude-checks", "positive_data_acceptance,allow_header_conformance")
"""A schema cannot say which fields go together, what an algorithm takes, or how long a model's prompts may be; and of a
path with two routes (/flush_cache) starlette names the methods of the first."""
HARMLESS = "generate/|chat/|get_sequence_logprobs|update_|flush_cache|reset_prefix_cache|world_size|close_|continue_"
"""Routes of a controlled server after which it goes on answering."""
DECODED = ("/v1/chat/completions", "/v1/completions", "/v1/generate", "/v1/generate_batch")


@pytest.fixture(scope="module", name="short")
def short_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Canvases are short, so that what is accepted is decoded quickly."""
    with serving(tmp_path_factory.mktemp("schema"), "max_model_len=64", "batch_size=16") as server:
        yield server


@pytest.mark.slow
def test_generated_requests_are_answered_as_documented(short: Server, tmp_path: Path) -> None:
    phases = ("--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--generation-deterministic")
    command = python("schemathesis.cli", "run", f"{short.url}/openapi.json", *CHECKS, *phases, "--no-color")
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


@pytest.fixture(scope="module", name="controlled")
def controlled_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("controlled")
    with serving(folder, "weight_control=true", "max_model_len=64", "batch_size=16", **{KEY_VARIABLE: KEY}) as server:
        yield server


@pytest.mark.slow
def test_generated_requests_to_a_controlled_server_are_answered_as_documented(
    controlled: Server, tmp_path: Path
) -> None:
    phases = ("--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--generation-deterministic")
    chosen = ("--include-path-regex", HARMLESS, "-H", f"Authorization: {HEADERS['Authorization']}")
    url = f"{controlled.url}/openapi.json"
    result = run(python("schemathesis.cli", "run", url, *CHECKS, *phases, *chosen, "--no-color"), tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search(r"(\d+) generated, (\d+) passed", result.stdout)
    assert found, result.stdout
    assert int(found[1]) > 300
    print(f"\n{found[0]}")


def answer_of(server: Server, shape: Any, path: str, body: dict[str, Any] | None = None) -> Any:
    """What is answered, after it was held to its shape."""
    url = server.url + path
    answer = httpx.get(url, headers=HEADERS) if body is None else httpx.post(url, json=body, headers=HEADERS)
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


def test_answers_of_a_controlled_server_have_no_field_that_is_not_documented(controlled: Server) -> None:
    sampling = {"max_tokens": 16, "n": 2}
    answer_of(controlled, control_shapes.Sequences, "/generate/", {"prompts": ["Hi"], **sampling})
    answer_of(controlled, control_shapes.Sequences, "/generate/", {"prompts": [[5, 6]], "logprobs": None})
    question = [{"role": "user", "content": "Hi"}]
    answer_of(controlled, control_shapes.Sequences, "/chat/", {"messages": [question], **sampling})
    sequences = {"sequences": [[5, 6, 7]], "prompt_lengths": [1], "top_logprobs": 1}
    for shape, form in ((control_shapes.SequenceLogprobs, "json"), (control_shapes.BinaryLogprobs, "binary")):
        answer_of(controlled, shape, "/get_sequence_logprobs/", {**sequences, "response_format": form})
    answer_of(controlled, control_shapes.WorldSize, "/get_world_size/")
    answer_of(controlled, shapes.Status, "/health/")
    for path in ("/reset_prefix_cache/", "/close_communicator/"):
        answer_of(controlled, control_shapes.Told, path, {})
    for path in ("/pause_generation", "/continue_generation"):
        answer_of(controlled, control_shapes.Paused, path, {})
    answer_of(controlled, control_shapes.Changed, "/update_weights_from_disk", {"model_path": str(CHECKPOINT)})
    for path in ("/flush_cache", "/release_memory_occupation", "/resume_memory_occupation"):
        answer_of(controlled, control_shapes.Changed, path, {})


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
