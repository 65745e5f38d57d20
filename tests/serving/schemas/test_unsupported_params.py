"""Requests as clients of other servers write them: what changes nothing passes, what cannot be honoured is refused by
name, and clients that try again get their answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from dlm.serving.http.errors import ApiError
from dlm.serving.schemas.unsupported_params import NEUTRAL, refuse_foreign
from tests.running import wait_until
from tests.serving.inside import Inside, serving_inside
from tests.serving.server import Server

QUESTION: list[Any] = [{"role": "user", "content": "Sort 7 3 12."}]
SKILLS: dict[str, Any] = {
    "max_tokens": 16,
    "temperature": 0.7,
    "top_p": 0.95,
    "seed": 3,
    "stop": ["\n\n", "Question:"],
    "n": 1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "stream": False,
    "timeout": 10000,
    "extra_body": {"min_p": 0.0, "repetition_penalty": 1.0, "spaces_between_special_tokens": False, "top_k": 20},
}
"""What NeMo-Skills' client for vLLM sends, its defaults among it."""
PLAIN = {"max_tokens": 16, "temperature": 0.7, "top_p": 0.95, "seed": 3, "stop": SKILLS["stop"]}


def test_a_chat_as_nemo_skills_sends_it_is_answered_as_the_plain_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, logprobs=False, top_logprobs=None, tools=None, **SKILLS
    )  # type: ignore[call-overload]  # null where the client's types know none
    plain = client.chat.completions.create(model="demo", messages=QUESTION, **PLAIN, extra_body={"top_k": 20})
    assert answer.choices[0].message.content == plain.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens > 0


def test_a_completion_as_nemo_skills_sends_it_is_answered_as_the_plain_one(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt="Sort 7 3 12.", logprobs=None, echo=False, logit_bias=None, **SKILLS
    )
    plain = client.completions.create(model="demo", prompt="Sort 7 3 12.", **PLAIN, extra_body={"top_k": 20})
    assert answer.choices[0].text == plain.choices[0].text


def test_every_token_is_kept_however_a_client_says_it(client: openai.OpenAI) -> None:
    texts = {
        client.chat.completions.create(model="demo", messages=QUESTION, **PLAIN, extra_body=extra).choices[0].message
        .content
        for extra in ({}, {"top_k": 0}, {"top_k": -1}, {"top_k": None})
    }  # fmt: skip
    assert len(texts) == 1


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_cannot_be_honoured_is_refused_and_what_changes_nothing_passes(name: str) -> None:
    for value in (None, *NEUTRAL[name]):
        refuse_foreign({name: value})
    with pytest.raises(ApiError, match=rf"^{name}='x+ is not supported; leave it out") as found:
        refuse_foreign({name: "x" * 1000})
    assert (found.value.status, found.value.param) == (400, name)
    assert len(found.value.message) < 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": QUESTION}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/generate", {"prompt": "Hi"}),
        ("/v1/generate_batch", {"prompts": ["Hi"]}),
    ],
)
def test_each_route_refuses_them(server: Server, path: str, body: dict[str, Any]) -> None:
    answer = httpx.post(server.url + path, json={**body, "max_tokens": 4, "repetition_penalty": 1.2})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "repetition_penalty"
    assert "repetition_penalty=1.2 is not supported; leave it out, or send 1" in answer.json()["error"]["message"]


@pytest.fixture(scope="module", name="narrow")
def narrow_server() -> Iterator[Inside]:
    """One at a time, nobody waits."""
    with serving_inside(batch_size=1, queue_size=0) as server:
        yield server


def test_a_client_that_was_turned_away_tries_again_and_is_answered(narrow: Inside) -> None:
    """The place is taken by a request that stands still until the client has been turned away."""
    told: list[int] = []
    with (
        narrow.held() as held,
        ThreadPoolExecutor(1) as pool,
        httpx.Client() as transport,
        openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="none", max_retries=1, http_client=transport) as client,
    ):
        url = f"{narrow.url}/v1/chat/completions"
        first = pool.submit(httpx.post, url, json={"messages": QUESTION, "max_tokens": 16})
        held.wait()

        def heard(response: httpx.Response) -> None:
            told.append(response.status_code)
            held.release()
            assert first.result().status_code == 200
            wait_until(lambda: narrow.unfinished() == 0, "the place was free")

        transport.event_hooks = {"response": [heard]}
        answer = client.chat.completions.create(model="demo", messages=QUESTION, **SKILLS)
    assert answer.choices[0].message.content
    assert told == [429, 200]


def test_a_client_whose_request_failed_in_the_decoder_tries_again_and_is_answered(
    narrow: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = narrow.service.thread.decoder.backbone.forward
    failures = iter([RuntimeError("broken"), RuntimeError("and alone again")])

    def failing(*arguments: Any, **named: Any) -> Any:
        for error in failures:
            raise error
        return forward(*arguments, **named)

    monkeypatch.setattr(narrow.service.thread.decoder.backbone, "forward", failing)
    told: list[int] = []
    hooks = {"response": [lambda response: told.append(response.status_code)]}
    with (
        httpx.Client(event_hooks=hooks) as transport,
        openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="none", max_retries=2, http_client=transport) as client,
    ):
        answer = client.chat.completions.create(model="demo", messages=QUESTION, **SKILLS)
    assert answer.choices[0].message.content
    assert told == [500, 200]
