"""Log-probabilities of given texts over HTTP are those that `dlm.likelihood` gives in process, to the bit."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

from dlm._paths import PACKAGE
from dlm.likelihood import Ar, Likelihood, LladaMC
from dlm.models.io.loading import load_checkpoint
from tests.rounding import of_a_forward
from tests.running import wait_until
from tests.serving.inside import serving_inside
from tests.serving.server import Server

PLAIN = "/v1/completions"
TEXTS = [[278, 4, 17, 99, 5], [12, 400, 7, 8, 9, 10, 11], [278, 4]]


@pytest.fixture(scope="module", name="likelihood")
def in_process() -> Likelihood:
    checkpoint = load_checkpoint(PACKAGE / "demo" / "checkpoint")
    return Likelihood(checkpoint.backbone, checkpoint.special)


def ask(server: Server, **body: Any) -> dict[str, Any]:
    answer = httpx.post(server.url + PLAIN, json={"echo": True, "logprobs": 1, "max_tokens": 1, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_chain_terms_are_those_of_the_library(server: Server, likelihood: Likelihood) -> None:
    answer = ask(server, prompt=TEXTS)
    assert answer["dlm"]["likelihood"]["scheme"] == "ar"
    for text, choice, mean in zip(TEXTS, answer["choices"], answer["dlm"]["likelihood"]["logprobs"], strict=True):
        scores = likelihood.score([text[:1]], [text[1:]], Ar(), per_token=True)
        assert scores.per_token is not None
        logprobs = choice["logprobs"]
        assert {len(logprobs[key]) for key in logprobs} == {len(text) + len(logprobs["tokens"][len(text) :])}
        assert logprobs["token_logprobs"][: len(text)] == [None, *scores.per_token[0].tolist()]
        assert mean == scores.mean.item()
        for value, top in zip(logprobs["token_logprobs"][1 : len(text)], logprobs["top_logprobs"][1:], strict=False):
            assert value <= max(top.values())


def test_greedy_tokens_are_told_by_equal_numbers(server: Server, likelihood: Likelihood) -> None:
    """What evaluation harnesses look at: the token's own number is the greatest."""
    choices = []
    for first in range(5, 1005, 250):
        texts = [[278, token] for token in range(first, first + 250)]
        choices += ask(server, prompt=texts, max_tokens=0)["choices"]
    logprobs = [choice["logprobs"] for choice in choices]
    own, tops = ([one[key][1] for one in logprobs] for key in ("token_logprobs", "top_logprobs"))
    greedy = [index for index, top in enumerate(tops) if own[index] == max(top.values())]
    assert greedy == [own.index(max(own))]
    rounding = of_a_forward(likelihood.backbone.config, torch.float32, 2)
    assert all(max(top.values()) == pytest.approx(max(own), rel=rounding) for top in tops)
    assert len(tops[greedy[0]]) == 1


def test_the_bound_of_a_continuation(server: Server, likelihood: Likelihood) -> None:
    text = TEXTS[1]
    asked = {"scheme": "llada_mc", "context_tokens": 3, "mc_num": 16, "seed": 5}
    answer = ask(server, prompt=text, dlm=asked)
    scores = likelihood.score([text[:3]], [text[3:]], LladaMC(16), seed=5, per_token=True)
    assert scores.per_token is not None
    [choice], found = answer["choices"], answer["dlm"]["likelihood"]
    assert choice["logprobs"]["token_logprobs"][: len(text)] == [None] * 3 + scores.per_token[0].tolist()
    assert choice["logprobs"]["top_logprobs"] is None
    assert found == {"scheme": "llada_mc", "logprobs": [scores.mean.item()], "stderr": [scores.stderr.item()]}


def test_max_tokens_0_gives_the_text_alone(server: Server) -> None:
    with_answer, alone = ask(server, prompt="Sort 7 3 12."), ask(server, prompt="Sort 7 3 12.", max_tokens=0)
    assert alone["choices"][0]["text"] == "Sort 7 3 12."
    assert alone["choices"][0]["finish_reason"] == "length"
    assert (alone["dlm"]["nfe"], alone["usage"]["completion_tokens"]) == (0, 0)
    count = alone["usage"]["prompt_tokens"]
    short, long = (one["choices"][0]["logprobs"] for one in (alone, with_answer))
    assert all(len(values) == count for values in short.values())
    assert all(long[key][:count] == short[key] for key in short)


def test_an_answer_of_no_token_counts_as_one(server: Server) -> None:
    """lm-eval's API model asks for one token more than it scores, and leaves the last of the list out."""
    texts = ["Sort 7 3 12. 7", "Sort 7 3 12. Sorted:", "Capital of France? Capital: Paris", "Split 17 eggs into"]
    texts += TEXTS
    choices = [ask(server, prompt=text) for text in texts]
    found = [choice["choices"][0]["logprobs"] for choice in choices]
    for logprobs, choice in zip(found, choices, strict=True):
        assert {len(values) for values in logprobs.values()} == {choice["usage"]["prompt_tokens"] + 1}
    empty = [logprobs["tokens"][-1] == "" for logprobs in found]
    assert any(empty)
    assert not all(empty)
    assert [logprobs["token_logprobs"][-1] is None for logprobs in found] == empty


def test_the_openai_client_reads_it(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="Sort 7 3 12.", max_tokens=4, logprobs=0, echo=True, n=2)
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.top_logprobs is None
        assert choice.logprobs.text_offset == [
            len("".join(choice.logprobs.tokens[:count])) for count in range(len(choice.logprobs.tokens))
        ]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"dlm": {"scheme": "best"}}, "dlm.scheme", "known: llada_mc"),
        ({"dlm": {"scheme": "llada_mc"}}, "dlm.context_tokens", "needs dlm.context_tokens"),
        ({"dlm": {"mc_num": 4}}, "dlm.mc_num", "requires scheme=llada_mc"),
        ({"dlm": {"scheme": "llada_mc", "context_tokens": 1, "mc_num": 0}}, "dlm.mc_num", "must be 1..1024"),
        ({"dlm": {"scheme": "llada_mc", "context_tokens": 3}}, "dlm.context_tokens", "must be 1..2"),
        ({"dlm": {"context_tokens": 0}}, "dlm.context_tokens", "must be 1..2"),
        ({"dlm": {"seed": -1}}, "dlm.seed", "must be 0.."),
        ({"dlm": {"steps": 3}}, None, "dlm.steps"),
        ({"dlm": {"scheme": "ar"}, "echo": False}, "dlm", "requires echo and logprobs"),
        ({"dlm": {"scheme": "ar"}, "logprobs": None}, "dlm", "requires echo and logprobs"),
        ({"prompt": [5]}, "prompt", "fewer than two tokens"),
        ({"prompt": [5, 6], "max_tokens": 0, "logprobs": None}, "max_tokens", "max_tokens=0"),
    ],
)
def test_what_cannot_be_scored_is_refused(server: Server, body: dict[str, Any], param: str | None, said: str) -> None:
    asked = {"prompt": [5, 6, 7], "echo": True, "logprobs": 1, "max_tokens": 1, **body}
    answer = httpx.post(server.url + PLAIN, json=asked)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert param is None or error["param"] == param


def test_scores_and_answers_do_not_disturb_each_other(server: Server) -> None:
    def answer(number: int) -> Any:
        if number % 2:
            body = {"prompt": TEXTS[number % 3], "seed": 1}
            return ask(server, **body)["choices"][0]["logprobs"]
        body = {"prompt": f"Sort 7 {number} 12.", "max_tokens": 32, "temperature": 1.0, "seed": number}
        return httpx.post(server.url + PLAIN, json=body).json()["choices"]

    alone = [answer(number) for number in range(24)]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(answer, range(24))) == alone


def test_a_client_that_leaves_is_not_scored_for() -> None:
    """Thousands of forwards are asked for; once the client has left, one for each text is made at most."""
    body: dict[str, Any] = {"prompt": [TEXTS[1] * 20] * 4, "echo": True, "logprobs": 1, "max_tokens": 1}
    body["dlm"] = {"scheme": "llada_mc", "context_tokens": 7, "mc_num": 1024}
    content = json.dumps(body).encode()
    with serving_inside() as inside:
        place = httpx.URL(inside.url)
        with inside.held() as held:
            with socket.create_connection((place.host, place.port or 0)) as client:
                head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
                client.sendall(f"POST {PLAIN} HTTP/1.1\r\n{head}".encode() + content)
                held.wait()
                held.step(3)
            wait_until(lambda: inside.service.metrics.total("client_left") == 1, "the server noticed")
            made = held.begun
            held.release()
            wait_until(lambda: not inside.service.thread._work, "the texts were forgotten")
            assert held.begun - made <= len(body["prompt"])
            assert httpx.post(inside.url + PLAIN, json={**body, "dlm": {}}).status_code == 200
