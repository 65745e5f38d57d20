"""Wrong requests: each gets OpenAI's error body with the field and the way out, and nobody else notices."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.serving.server import Server

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]


def post(server: Server, path: str, body: Any = None, **more: Any) -> httpx.Response:
    return httpx.post(server.url + path, **({"json": body} if "content" not in more else {}), **more)


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    return found


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "messages", "Field required"),
        ({"messages": []}, "messages", "give at least one"),
        ({"messages": "Hi"}, "messages", "array"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages.0.role", "user"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "'image_url'"),
        ({"messages": HI, "max_tokens": 0}, "max_tokens", "1..8192"),
        ({"messages": HI, "max_tokens": 100000}, "max_tokens", "1..8192"),
        ({"messages": HI, "max_tokens": 8192}, "max_tokens", "positions"),
        ({"messages": HI, "max_tokens": 8, "max_completion_tokens": 9}, "max_completion_tokens", "disagree"),
        ({"messages": HI, "temperature": 3}, "temperature", "at most 2"),
        ({"messages": HI, "temperature": "hot"}, "temperature", "number"),
        ({"messages": HI, "top_p": 0}, "top_p", "above 0"),
        ({"messages": HI, "seed": -1}, "seed", "0.."),
        ({"messages": HI, "n": 0}, "n", "a whole number, 1..65536"),
        ({"messages": HI, "n": 1000}, "n", "1..128"),
        ({"messages": HI, "stop": [""]}, "stop", "none of them empty"),
        ({"messages": HI, "steps": 9000}, "steps", "1..8192"),
        ({"messages": HI, "threshold": 0.5, "factor": 1.0}, "threshold", "one of them"),
        ({"messages": HI, "kl_threshold": 0.1, "generation_algorithm": "basic"}, None, "not a parameter of"),
        ({"messages": HI, "generation_algorithm": "llada2"}, "generation_algorithm", "cannot run on a llada model"),
        ({"messages": HI, "frequency_penalty": 1}, "frequency_penalty", "not supported"),
        ({"messages": HI, "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"messages": HI, "tools": [{}]}, "tools", "not supported"),
        ({"messages": HI, "response_format": {"type": "json_object"}}, "response_format", "use text"),
        ({"messages": HI, "top_logprobs": 5}, "top_logprobs", "leave it out"),
        ({"messages": HI, "stream_options": {}}, "stream_options", "stream=true"),
        ({"messages": HI, "dlm_events": True}, "dlm_events", "stream=true"),
        ({"messages": [{"role": "user", "content": "word " * 1500}]}, None, "positions"),
        ({"messages": [{"role": "user", "content": "x" * 10**6}]}, "prompt", "1000000 characters"),
    ],
)  # fmt: skip
def test_a_wrong_chat_is_told_what_is_wrong(server: Server, body: dict[str, Any], param: str | None, said: str) -> None:
    answer = post(server, CHAT, body)
    assert answer.status_code == 400, answer.text
    found = error(answer)
    assert said in found["message"]
    if param is not None:
        assert found["param"] == param


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "Field required"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": ["a", ""]}, "prompt is empty"),
        ({"prompt": [10**9]}, "outside the vocabulary"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of=3"),
        ({"prompt": "a", "logprobs": 5}, "logprobs=5"),
        ({"prompt": "a", "echo": True, "stream": True}, "echo"),
        ({"prompt": ["a"] * 300}, "at most 256 items"),
    ],
)
def test_a_wrong_completion_is_told_what_is_wrong(server: Server, body: dict[str, Any], said: str) -> None:
    answer = post(server, PLAIN, body)
    assert answer.status_code == 400, answer.text
    assert said in error(answer)["message"]


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b'"x"', b"\xff\xfe\x00", b'{"messages": "\xff"}', b"null"])
def test_what_is_no_json_object_is_refused(server: Server, content: bytes) -> None:
    answer = post(server, CHAT, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert error(answer)["param"] is None


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_is_read(server: Server, chunked: bool) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * (10 << 20)}]}).encode()
    content = (body[place : place + 65536] for place in range(0, len(body), 65536)) if chunked else body
    try:
        answer = post(server, CHAT, content=content, headers={"Content-Type": "application/json"})
    except (httpx.WriteError, httpx.RemoteProtocolError):
        return  # the server closed the connection while the body was still being sent
    assert answer.status_code == 413
    assert "4 MiB" in error(answer)["message"]


@pytest.mark.parametrize(
    "path",
    ["/v1/nothing", "/nothing", "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/v1/result/7"],
)
def test_what_is_not_there_is_not_found(server: Server, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 404
    assert "not_found" in error(answer)["type"]


def test_a_wrong_method_is_told(server: Server) -> None:
    for answer in (httpx.get(server.url + "/v1/generate"), httpx.put(server.url + CHAT, json={})):
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
        assert "Method Not Allowed" in error(answer)["message"]


def test_a_request_id_is_given_back_and_a_broken_one_replaced(server: Server) -> None:
    assert httpx.get(server.url + "/health", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    odd = httpx.get(server.url + "/health", headers={"X-Request-Id": "a b<script>"}).headers["X-Request-Id"]
    assert odd.isalnum()


def test_unknown_fields_and_nulls_change_nothing(server: Server) -> None:
    body = {"messages": HI, "max_tokens": 16, "seed": 1}
    extra = {"whatever": {"a": 1}, "temperature": None, "stop": None, "ignore_eos": None, "priority": 0}
    first, second = post(server, CHAT, body).json(), post(server, CHAT, {**body, **extra}).json()
    assert first["choices"] == second["choices"]


def test_a_page_of_a_foreign_origin_is_not_let_in(server: Server) -> None:
    answer = httpx.get(server.url + "/health", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_no_prompt_is_in_the_log(server: Server) -> None:
    post(server, CHAT, {"messages": [{"role": "user", "content": "verysecretword"}], "max_tokens": 4})
    post(server, CHAT, {"messages": [{"role": "user", "content": "verysecretword"}], "temperature": 9})
    assert not any("verysecretword" in line for line in server.lines)
