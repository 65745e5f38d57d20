"""TRL's routes: samples, log-probabilities of sequences, and weights that come over a process group."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from dlm import LLM, SamplingParams
from dlm.demo import CHECKPOINT
from dlm.rl import Rollouts
from dlm.rl.weights.communicator import Communicator, join
from dlm.serving.api.trl_channel import Channel
from tests.running import TIMEOUT, wait_until
from tests.serving.controlled import ASK, HEADERS, asked, content, controlled, saved, stirred, tensors_of
from tests.serving.fleets import free_ports
from tests.serving.inside import Inside, serving_inside
from tests.serving.trl_client import Client

QUESTION, OTHER = "What is 3 + 4?", "Sort 9 2 55 4."


@pytest.fixture(scope="module", name="server")
def controlled_server() -> Iterator[tuple[Inside, httpx.Client]]:
    with controlled(batch_size=8) as made:
        yield made


@pytest.fixture(name="client")
def trl_client(server: tuple[Inside, httpx.Client]) -> Iterator[Client]:
    with Client(server[0].url, free_ports(1)) as client:
        yield client


@pytest.fixture(scope="module", name="llm")
def demo() -> LLM:
    return LLM("demo")


@pytest.fixture(scope="module", name="new")
def new_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], str]:
    """Weights, and what a server answers that begins with them."""
    model = stirred(2)
    folder = saved(model, tmp_path_factory.mktemp("weights") / "new")
    with serving_inside(path=str(folder)) as fresh:
        return tensors_of(model), content(httpx.post(f"{fresh.url}/v1/chat/completions", json=ASK, headers=HEADERS))


# Samples


def test_answers_are_those_of_the_library_with_their_ends_and_logprobs(client: Client, llm: LLM) -> None:
    codec = llm.codec
    prompts = [list(codec.encode(text)) for text in (QUESTION, OTHER)]
    extra = {"temperature": 0.8, "top_p": 0.95, "generation_kwargs": {"seed": 5, "algorithm": "dual_cache"}}
    found = client.generate(prompts, n=2, max_tokens=32, **extra)
    assert found.keys() == {"prompt_ids", "completion_ids", "logprobs", "logprob_token_ids", "weight_version"}
    assert found["prompt_ids"] == prompts
    params = SamplingParams(gen_length=32, temperature=0.8, top_p=0.95, seed=5, algorithm="dual_cache")
    rollouts = Rollouts.load("demo")
    ends = rollouts.checkpoint.special.end_ids
    for ids, values, shown, rollout in zip(
        found["completion_ids"],
        found["logprobs"],
        found["logprob_token_ids"],
        rollouts.generate(prompts, params, n=2),
        strict=True,
    ):
        count = len(rollout.token_ids)
        assert tuple(ids[:count]) == rollout.token_ids
        assert len(ids) == count + (rollout.finish_reason == "stop")
        assert all(token in ends for token in ids[count:])
        assert shown == [[token] for token in ids]
        assert rollout.logprobs_processed is not None
        assert [value for [value] in values] == list(rollout.logprobs_processed[: len(ids)])


def test_texts_and_conversations_are_encoded_here(client: Client, llm: LLM) -> None:
    found = client.generate([QUESTION], temperature=0.0, logprobs=None)
    assert found["prompt_ids"] == [list(llm.codec.encode_literally(QUESTION))]
    assert found["logprobs"] is found["logprob_token_ids"] is None
    messages = [{"role": "user", "content": QUESTION}]
    found = client.chat([messages, messages], n=2, temperature=0.0, max_tokens=32)
    assert found["prompt_ids"] == [list(llm.codec.encode(QUESTION))] * 2
    assert len(found["completion_ids"]) == 4
    assert len({tuple(ids) for ids in found["completion_ids"]}) == 1
    [answer] = llm.generate([QUESTION], SamplingParams(gen_length=32, temperature=0.0))
    assert found["completion_ids"][0][:-1] == answer["token_ids"]
    assert len(client.generate([QUESTION], max_tokens=3, temperature=0.0)["completion_ids"][0]) <= 3


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"min_p": 0.1}, "min_p"),
        ({"structured_outputs_regex": "a*"}, "structured_outputs_regex"),
        ({"guided_decoding_regex": "a*"}, "guided_decoding_regex"),
        ({"images": [["x"]]}, "images"),
        ({"logprobs": 5}, "logprobs"),
        ({"temperature": 3.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"prompts": []}, "prompts"),
        ({"prompts": [""]}, "prompts"),
        ({"prompts": [[5], []]}, "prompts"),
        ({"generation_kwargs": {"presence_penalty": 0.5}}, "presence_penalty"),
        ({"generation_kwargs": {"best_of": 2}}, "best_of"),
        ({"generation_kwargs": {"logprobs": 3}}, "logprobs"),
        ({"generation_kwargs": {"seed": "x"}}, "generation_kwargs"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    server: tuple[Inside, httpx.Client], more: dict[str, Any], field: str
) -> None:
    answer = server[1].post("/generate/", json={"prompts": [QUESTION], **more})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
    if "prompts" not in more:
        body = {"messages": [[{"role": "user", "content": QUESTION}]], **more}
        assert server[1].post("/chat/", json=body).json()["error"]["param"] == field


def test_tools_and_templates_are_refused(client: Client) -> None:
    messages = [[{"role": "user", "content": QUESTION}]]
    for name, value in (("tools", [{"type": "function"}]), ("chat_template_kwargs", {"thinking": True})):
        with pytest.raises(RuntimeError, match=rf"400.*{name}=.* is not supported"):
            client.chat(messages, **{name: value})


# Sequences


def test_sequences_are_scored_token_by_token(client: Client, llm: LLM) -> None:
    prompt, answer = list(llm.codec.encode(QUESTION)), list(llm.codec.encode_literally("7 and 8"))
    sequences = [prompt + answer, prompt, answer]
    lengths = [len(prompt), len(prompt), 0]
    lists = client.get_sequence_logprobs(sequences, lengths, "json")
    scores = Rollouts.load("demo").score(prompt, answer, scheme="ar", per_token=True)
    assert [len(row) for row in lists["logprobs"]] == [len(answer), 0, len(answer)]
    assert lists["logprobs"][2][0] == lists["logprob_token_ids"][2][0] == []
    packed = client.get_sequence_logprobs(sequences, lengths, "binary")
    shape, counts = packed["shape"], packed["completion_lengths"]
    assert (shape, counts) == ([3, len(answer), 1], [len(answer), 0, len(answer)])

    def array(name: str, kind: Any) -> Any:
        return np.frombuffer(base64.b64decode(packed[name]), dtype=kind).reshape(shape)

    own = array("actual_logprobs_b64", np.float32)
    assert scores.per_token is not None
    np.testing.assert_array_equal(own[0, :, 0], scores.per_token[0].numpy().astype(np.float32))
    assert array("actual_token_ids_b64", np.int32)[0, :, 0].tolist() == answer
    best = array("logprobs_b64", np.float32)
    np.testing.assert_array_equal(best[0, :, 0], np.float32([value for [value] in lists["logprobs"][0]]))
    assert array("token_ids_b64", np.int32)[0].tolist() == lists["logprob_token_ids"][0]
    assert (best[0] >= own[0]).all()
    assert np.isneginf(own[1]).all()
    assert np.isneginf(own[2, 0]).all()


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"top_logprobs": 100}, "top_logprobs"),
        ({"temperature": 0.5}, "temperature"),
        ({"prompt_lengths": [1, 2]}, "prompt_lengths"),
        ({"prompt_lengths": [9]}, "prompt_lengths"),
        ({"sequences": [[5, 10**6]]}, "sequences[0]"),
        ({"sequences": [[5] * 2000]}, "sequences[0]"),
        ({"response_format": "xml"}, "response_format"),
    ],
)
def test_sequences_that_cannot_be_scored_are_refused(
    server: tuple[Inside, httpx.Client], more: dict[str, Any], field: str
) -> None:
    body = {"sequences": [[5, 6, 7]], "prompt_lengths": [1], "top_logprobs": 1, **more}
    answer = server[1].post("/get_sequence_logprobs/", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text


# Weights


def test_weights_come_tensor_by_tensor_and_count_when_all_are_there(
    server: tuple[Inside, httpx.Client], new: tuple[dict[str, torch.Tensor], str]
) -> None:
    _, http = server
    before, version = asked(http)
    tensors, expected = new
    names = list(tensors)
    with Client(server[0].url, free_ports(1)) as client:
        join(client)
        for name in names[:-1]:
            client.update_named_param(f"module.{name}", tensors[name].double())
        assert asked(http) == (before, version)
        client.update_named_param(f"module.{names[-1]}", tensors[names[-1]].double())
        client.reset_prefix_cache()
        assert asked(http) == (expected, version + 1)
        assert client.generate([QUESTION])["weight_version"] == version + 1
        for name in names:
            client.update_named_param(name, tensors[name])
        assert client.generate([QUESTION])["weight_version"] == version + 2
    assert http.post("/update_weights_from_disk", json={"model_path": str(CHECKPOINT)}).status_code == 200
    assert asked(http)[0] == before


def test_wrong_weights_are_named_before_they_are_sent(
    server: tuple[Inside, httpx.Client], new: tuple[dict[str, torch.Tensor], str]
) -> None:
    _, http = server
    before = asked(http)
    first, second = list(new[0])[:2]
    with Client(server[0].url, free_ports(1)) as client:
        with pytest.raises(RuntimeError, match=r"409.*POST /init_communicator/ first"):
            client.update_named_param(first, new[0][first])
        join(client)
        with pytest.raises(RuntimeError, match=r"409.*a group already exists"):
            join(client)
        shape = list(new[0][first].shape)
        for body, message in (
            ({"name": "odd", "dtype": "torch.float32", "shape": [2]}, "odd is unknown to this model"),
            (
                {"name": first, "dtype": "torch.float32", "shape": [2]},
                f"{first} has shape [2], the model's has {shape}",
            ),
            ({"name": first, "dtype": "torch.nn", "shape": shape}, "dtype='torch.nn' is unknown"),
            ({"name": first, "dtype": "torch.int8", "shape": shape}, f"{first} holds torch.int8"),
        ):
            answer = http.post("/update_named_param/", json=body)
            assert answer.status_code == 400
            assert message in answer.json()["error"]["message"]
        client.update_named_param(first, new[0][first])
        client.update_named_param(second, new[0][second])
        with pytest.raises(
            RuntimeError, match=r"400.*update_weights: 37 of 39 tensors are missing .* nothing was changed"
        ):
            client.reset_prefix_cache()
        assert asked(http) == before


def test_a_group_that_cannot_be_is_refused(server: tuple[Inside, httpx.Client]) -> None:
    _, http = server
    port = free_ports(1)
    body = {"host": "0.0.0.0", "port": port, "world_size": 2, "backend": "gloo"}
    real = {"host": "0.0.0.0", "port": port, "world_size": 2, "client_device_uuid": "GPU-1"}
    taken = int(server[0].url.rpartition(":")[2])
    for wrong, status, message in (
        (real, 400, "VLLMClient.init_communicator = dlm.rl.weights.communicator.join"),
        ({**body, "world_size": 3}, 400, "world_size=3 must be 2"),
        ({**body, "port": 0}, 400, "port"),
        ({**body, "host": "127.0.0.1", "port": taken}, 409, "cannot listen on 127.0.0.1"),
        ({**body, "host": "no.such.host."}, 409, "cannot listen on no.such.host."),
    ):
        answer = http.post("/init_communicator/", json=wrong)
        assert (answer.status_code, message in answer.text) == (status, True), answer.text


def test_wrong_input_is_refused_while_a_client_is_waited_for_that_never_joins(
    server: tuple[Inside, httpx.Client], new: tuple[dict[str, torch.Tensor], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def waits(*_: object) -> None:
        raise AssertionError("it waited")

    _, http = server
    port, name = free_ports(1), next(iter(new[0]))
    body = {"host": "0.0.0.0", "port": port, "world_size": 2, "backend": "gloo"}
    assert http.post("/init_communicator/", json=body).status_code == 200
    monkeypatch.setattr(Channel, "settled", waits)
    for path, wrong in (
        ("/update_named_param/", {"name": "odd", "dtype": "torch.float32", "shape": [2]}),
        ("/update_named_param/", {"name": name, "dtype": "torch.float32", "shape": [2]}),
        ("/update_named_param/", {"name": name, "dtype": "float33", "shape": list(new[0][name].shape)}),
        ("/update_named_param/", {"name": name, "dtype": "torch.int8", "shape": list(new[0][name].shape)}),
        ("/generate/", {"prompts": ["a" * 10**6]}),
        ("/generate/", {"prompts": [[10**6]]}),
        ("/get_sequence_logprobs/", {"sequences": [[10**6]], "prompt_lengths": [0], "top_logprobs": 1}),
    ):
        answer = http.post(path, json=wrong)
        assert answer.status_code == 400, answer.text
    monkeypatch.undo()
    assert http.post("/close_communicator/").status_code == 200
    Communicator("127.0.0.1", port, 1, 2)  # so that nobody waits for it any longer


def test_who_waits_for_a_client_that_does_not_come_goes_on_when_the_group_is_closed(
    server: tuple[Inside, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, waits, goes_on = Channel.settled, threading.Event(), threading.Event()

    async def watched(channel: Channel) -> None:
        waits.set()
        await settled(channel)
        goes_on.set()

    monkeypatch.setattr(Channel, "settled", watched)
    _, http = server
    port = free_ports(1)
    body = {"host": "0.0.0.0", "port": port, "world_size": 2, "backend": "gloo"}
    assert http.post("/init_communicator/", json=body).status_code == 200
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.post, "/generate/", json={"prompts": ["a"]})
        assert waits.wait(TIMEOUT)
        assert http.get("/health").status_code == 200
        assert not goes_on.is_set()
        assert http.post("/close_communicator/").status_code == 200
        assert waiting.result().status_code == 200
        assert goes_on.is_set()
    Communicator("127.0.0.1", port, 1, 2)  # so that nobody waits for it any longer


def test_a_client_that_breaks_off_leaves_the_weights_as_they_were(
    server: tuple[Inside, httpx.Client], new: tuple[dict[str, torch.Tensor], str]
) -> None:
    inside, http = server
    before = asked(http)
    tensors, expected = new
    first, second = list(tensors)[:2]
    with Client(inside.url, free_ports(1)) as client:
        join(client)
        client.update_named_param(first, tensors[first])
        client.ask("/update_named_param/", {"name": second, "dtype": "torch.float32", "shape": tensors[second].shape})
        client.communicator = None  # the trainer is gone
        wait_until(lambda: http.post("/generate/", json={"prompts": ["a"]}).status_code == 503, "it was noticed")
        for path in ("/generate/", "/reset_prefix_cache/"):
            answer = http.post(path, json={"prompts": ["a"]})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "update_failed")
            assert "the weights are unchanged" in answer.json()["error"]["message"]
        assert asked(http) == before
    with Client(inside.url, free_ports(1)) as client:
        join(client)
        for name, tensor in tensors.items():
            client.update_named_param(name, tensor)
        client.reset_prefix_cache()
        assert asked(http) == (expected, before[1] + 1)
