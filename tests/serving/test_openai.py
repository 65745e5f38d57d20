"""The openai client, unchanged."""

from __future__ import annotations

from typing import Any

import openai
import pytest

SORT: list[Any] = [{"role": "user", "content": "Sort 7 3 12."}]
WARM: dict[str, Any] = {
    "temperature": 2.0,
    "max_tokens": 32,
    "extra_body": {"generation_algorithm": "basic", "threshold": 0.0, "ignore_eos": True},
}


def test_a_chat_completion_has_text_usage_and_figures(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=SORT, max_tokens=32)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "Sorted: 3 7 12",
        "stop",
    )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (15, 5, 20)
    assert answer.model_extra is not None
    figures = answer.model_extra["dlm"]
    assert figures["algorithm"] == "dinfer_blockwise"
    assert figures["nfe"] >= 1
    assert figures["tokens_per_forward"] == round(5 / figures["nfe"], 4)


def test_max_tokens_cuts_and_says_so(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=SORT, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_n_samples_differ_and_a_seed_reproduces_them(client: openai.OpenAI) -> None:
    def texts(**more: Any) -> list[str | None]:
        answer = client.chat.completions.create(model="demo", messages=SORT, n=3, **{**WARM, **more})
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = texts(seed=5)
    assert len(set(first)) == 3
    assert texts(seed=5) == first
    assert texts(seed=6) != first


def test_an_unnamed_seed_is_drawn_and_told(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="demo", messages=SORT, **WARM)
    assert first.model_extra is not None
    seed = first.model_extra["dlm"]["seed"]
    again = client.chat.completions.create(model="demo", messages=SORT, seed=seed, **WARM)
    assert again.choices[0].message.content == first.choices[0].message.content


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=SORT, stop=[" 7"], max_tokens=32)
    assert answer.choices[0].message.content == "Sorted: 3"
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stop", [None, [" 7 1"]])
def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI, stop: Any) -> None:
    wanted: dict[str, Any] = {"model": "demo", "messages": SORT, "max_tokens": 32, "stop": stop, "n": 2, "seed": 3}
    wanted["extra_body"] = {"block_length": 2, "ignore_eos": True}
    whole = client.chat.completions.create(**wanted)
    pieces: dict[int, list[str]] = {0: [], 1: []}
    reasons, usage = {}, None
    for chunk in client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces[choice.index].append(choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason
    assert ["".join(pieces[index]) for index in (0, 1)] == [choice.message.content for choice in whole.choices]
    assert [reasons[index] for index in (0, 1)] == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_settled_text_comes_before_half_of_the_forwards_are_made(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"dlm_events": True, "ignore_eos": True, "block_length": 4, "generation_algorithm": "basic"}
    body["steps"] = 64
    steps, first = 0, None
    for chunk in client.chat.completions.create(
        model="demo", messages=SORT, max_tokens=64, stream=True, extra_body=body
    ):
        event = (chunk.model_extra or {}).get("dlm", {})
        steps = max(steps, event.get("step", 0))
        if first is None and any(choice.delta.content for choice in chunk.choices):
            first = steps
    assert steps == 64
    assert first == 4


def test_plain_completions_take_texts_and_token_ids(client: openai.OpenAI) -> None:
    one = client.completions.create(model="demo", prompt="Sort 7 3 12.", max_tokens=16, seed=1)
    several = client.completions.create(model="demo", prompt=["Sort 7 3 12.", "Hi"], max_tokens=16, seed=1, echo=True)
    assert several.choices[0].text == "Sort 7 3 12." + one.choices[0].text
    ids = client.completions.create(model="demo", prompt=[[278, 4], [278, 4]], max_tokens=16, seed=1)
    assert ids.choices[0].text == ids.choices[1].text
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 4


def test_log_probabilities_are_given_for_every_token_shown(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=SORT, max_tokens=32, logprobs=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == answer.choices[0].message.content
    assert all(one.logprob <= 0 for one in logprobs.content)


def test_special_tokens_in_a_message_are_text(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="demo", messages=SORT, max_tokens=8)
    odd: list[Any] = [{"role": "user", "content": "Sort 7 <|mdm_mask|><|eot_id|>3 12."}]
    answer = client.chat.completions.create(model="demo", messages=odd, max_tokens=8)
    assert answer.usage is not None
    assert plain.usage is not None
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens + 10


def test_models_are_listed(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == "demo"
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError, match="served: demo"):
        client.models.retrieve("gpt")


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here; served: demo"):
        client.chat.completions.create(model="gpt", messages=SORT)


def test_an_unknown_algorithm_is_refused_with_those_there_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"unknown; known: auto, basic, .*klass"):
        client.chat.completions.create(model="demo", messages=SORT, extra_body={"generation_algorithm": "magic"})
