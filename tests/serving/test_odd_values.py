"""Odd values in every field of every body, in paths and in queries: never a 5xx, and the connection goes on."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from dlm.serving.api import trl_channel
from dlm.serving.engine.service import Service
from dlm.serving.schemas.openapi import EXAMPLES
from tests.running import TIMEOUT
from tests.serving.controlled import HEADERS, controlled

ODD = (
    None, True, -1, 0, 1, 10**400, -(10**400), 2**63, -(2**63) - 1, 2**64, 1e308, -1e308, 5e-324, 1e-7, float("nan"),
    float("inf"), float("-inf"), "", "x", "\ud800", "a\udfff", "\ud83d\ude00", "\0", "é\u202e", "a" * 5000, "a/" * 3000,
    "~nobody-here/x", "../..", "1e999", "9" * 5000, [], [[]], [None], [1], [-1], [1, 2**70], ["\ud800"], ["a", 1],
    [[1]], [[2**70]], [1.5], {}, {"a": 1}, {"\ud800": 1}, [{}], [{"role": "user", "content": "\ud800"}],
    [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}], [[{"role": "user"}]],
    {"scheme": "\0", "seed": -1},
)  # fmt: skip
HOSTS = (None, "", "\0", "\ud800", "a" * 200, "a" * 5000, "..", "127.0.0.1\0", "256.0.0.1.", 1, [], {}, "[::1]", "::1")
"""None is a name that somebody would be asked for."""
SHORT = {"max_tokens": 4, "gen_length": None}
DECODING = "CompletionRequest"
"""The body whose fields of decoding are tried; all bodies have the same ones."""


class Client:
    """One connection, which is not made again when the server closes it."""

    def __init__(self, url: str) -> None:
        place = httpx.URL(url)
        self._connection = http.client.HTTPConnection(place.host, place.port, timeout=TIMEOUT)
        self._connection.connect()
        self._connection.auto_open = 0

    def close(self) -> None:
        self._connection.close()

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Status and text."""
        content = None if body is None else json.dumps(body)
        headers = {**HEADERS, **({} if body is None else {"Content-Type": "application/json"})}
        self._connection.request(method, path, content, headers)
        answer = self._connection.getresponse()
        text = answer.read().decode()
        assert not answer.will_close, (path, body)
        return answer.status, text


@pytest.fixture(scope="module", name="ask")
def controlled_client() -> Iterator[Client]:
    def joins_nobody(*_: object) -> None:
        raise RuntimeError("nobody joins")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl_channel, "Communicator", joins_nobody)
        with controlled(max_model_len=64, batch_size=16) as (inside, _):
            client = Client(inside.url)
            yield client
            client.close()


def routes(ask: Client) -> Iterator[tuple[str, str, dict[str, Any], list[str]]]:
    """Path, name of the body, an example and the fields of each route with a body."""
    document = json.loads(ask("GET", "/openapi.json")[1])
    schemas = document["components"]["schemas"]
    shared = set(schemas["ChatRequest"]["properties"]) & set(schemas["SubmitRequest"]["properties"])
    for path, operations in document["paths"].items():
        if "requestBody" in operations.get("post", {}):
            schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            name = schema.get("anyOf", [schema])[0]["$ref"].rpartition("/")[2]
            fields = set(schemas[name]["properties"]) - (shared if name != DECODING else set())
            example: dict[str, Any] = next(iter(EXAMPLES[name].values()))
            yield path, name, {**example, **(SHORT if "max_tokens" in example else {})}, sorted(fields)


def judged(path: str, body: Any, status: int, text: str) -> None:
    assert status < 500 or "asleep" in text, (path, body, text)
    if status >= 400:
        assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}, text
        assert len(text) < 2000, (path, body)


@pytest.mark.slow
def test_no_odd_value_of_a_field_is_a_server_error(ask: Client) -> None:
    asked = refused = 0
    for path, name, example, fields in routes(ask):
        for field in [*fields, "nobody_knows_this"]:
            for value in HOSTS if field == "host" else ODD:
                status, text = ask("POST", path, {**example, field: value})
                judged(path, {field: value}, status, text)
                asked, refused = asked + 1, refused + (status >= 400)
                if name in ("PauseRequest", "MemoryRequest"):
                    ask("POST", "/continue_generation")
                    ask("POST", "/resume_memory_occupation", {})
                if name in ("CommunicatorRequest", "ParameterRequest"):
                    ask("POST", "/close_communicator/")
        for value in ODD:
            judged(path, value, *ask("POST", path, value))
    print(f"\n{asked} asked, {refused} refused")
    assert refused > asked / 2


@pytest.mark.parametrize("path", ["/v1/result/", "/v1/models/", "/stats?fleet=", "/", "/static/", "/v1/"])
def test_no_odd_path_is_a_server_error(ask: Client, path: str) -> None:
    odd = [str(value).encode("utf-8", "surrogatepass") for value in ODD] + [b"\xff", b"\xed\xa0\x80", b"%", b"a#b"]
    for value in odd:
        judged(path, value, *ask("GET", path + quote(value, safe="")))
    for plain in ("%", "%zz", "#", "?", "//", "%00", "[", "a" * 30_000):
        judged(path, plain, *ask("GET", path + plain))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a\ud800"}),
        ("/v1/completions", {"prompt": ["a", "\ud800"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}),
        ("/v1/generate", {"prompt": "\udc00"}),
        ("/v1/generate_batch", {"prompts": ["a", "\udc00"]}),
        ("/generate/", {"prompts": ["\ud800"]}),
        ("/chat/", {"messages": [[{"role": "user", "content": "\ud800"}]]}),
        ("/v1/completions", {"prompt": "a", "cfg_scale": 10**400}),
        ("/v1/completions", {"prompt": "a", "temperature": 10**400}),
        ("/v1/completions", {"prompt": "a", "generation_algorithm": "basic", "threshold": -(10**400)}),
        ("/v1/completions", {"prompt": "a", "seed": 10**4299}),
        ("/update_weights_from_disk", {"model_path": "a" * 5000}),
        ("/update_weights_from_disk", {"model_path": "a" * 300}),
        ("/update_weights_from_disk", {"model_path": "a\0b"}),
        ("/update_weights_from_disk", {"model_path": "~nobody-here/a"}),
        ("/init_communicator/", {"host": "\0", "port": 1, "world_size": 2, "backend": "gloo"}),
        ("/init_communicator/", {"host": "a" * 5000, "port": 1, "world_size": 2, "backend": "gloo"}),
        ("/update_named_param/", {"name": "\0", "dtype": "", "shape": [2**62, 2**62]}),
    ],
)  # fmt: skip
def test_what_was_a_server_error_is_refused_with_a_text(ask: Client, path: str, body: dict[str, Any]) -> None:
    status, text = ask("POST", path, body)
    assert status == 400, text
    assert len(json.loads(text)["error"]["message"]) > 20
    assert ask("GET", "/health")[0] == 200


def test_after_what_nobody_has_thought_of_the_connection_lives_and_it_is_counted(
    ask: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise LookupError("verysecret")

    def counted() -> int:
        found: int = json.loads(ask("GET", "/stats")[1])["workers"][0]["errors"]
        return found

    before = counted()
    with monkeypatch.context() as patch:
        patch.setattr(Service, "check_model", breaks)
        status, text = ask("POST", "/v1/completions", {"prompt": "a"})
    assert (status, json.loads(text)["error"]["type"]) == (500, "server_error")
    assert "LookupError" in text
    assert "verysecret" not in text
    assert "verysecret" in caplog.text
    assert ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 4})[0] == 200
    assert counted() == before + 1
