"""SGLang's routes: pause, new weights from disk or in the body, sleep; and what comes of them for those who ask."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch

from dlm.demo import CHECKPOINT
from dlm.errors import ConfigError
from dlm.rl.weights.update import WeightWriter
from dlm.serving.api.trl import PATHS
from dlm.serving.config import register, to_settings
from dlm.serving.settings import KEY_VARIABLE
from tests.fuzzing.pickles import named, text
from tests.running import TIMEOUT, wait_until
from tests.serving.controlled import ASK, HEADERS, KEY, asked, content, controlled, saved, stirred, tensors_of
from tests.serving.inside import Inside, serving_inside

SGLANG = (
    "/pause_generation", "/continue_generation", "/update_weights_from_disk", "/update_weights_from_tensor",
    "/flush_cache", "/release_memory_occupation", "/resume_memory_occupation",
)  # fmt: skip
LONG = {
    "max_tokens": 128, "generation_algorithm": "basic", "remasking": "low_confidence", "steps": 128, "ignore_eos": True,
}  # fmt: skip
DISK, TENSOR = "/update_weights_from_disk", "/update_weights_from_tensor"


@pytest.fixture(scope="module", name="new")
def new_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    model = stirred(1)
    return saved(model, tmp_path_factory.mktemp("weights") / "new"), tensors_of(model)


@pytest.fixture(scope="module", name="expected")
def answer_of_a_fresh_server(new: tuple[Path, dict[str, torch.Tensor]]) -> str:
    with serving_inside(path=str(new[0])) as fresh:
        return content(httpx.post(f"{fresh.url}/v1/chat/completions", json=ASK, headers=HEADERS))


@pytest.fixture(scope="module", name="before")
def answer_before() -> str:
    with serving_inside() as plain:
        return content(httpx.post(f"{plain.url}/v1/chat/completions", json=ASK, headers=HEADERS))


@pytest.fixture(name="server")
def controlled_server() -> Iterator[tuple[Inside, httpx.Client]]:
    with controlled(batch_size=4, max_body_mib=32.0) as made:
        yield made


def encoded(tensors: dict[str, torch.Tensor]) -> str:
    return b64encode(safetensors.torch.save(tensors)).decode()


@pytest.fixture(name="meanwhile")
def meanwhile_pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


# Off, and behind the key


def test_the_routes_are_off_unless_asked_for() -> None:
    with serving_inside() as plain:
        for path in (*SGLANG, *PATHS):
            method = "GET" if path == "/get_world_size/" else "POST"
            assert httpx.request(method, plain.url + path, json={}).status_code == 404, path
        assert not set(httpx.get(f"{plain.url}/openapi.json").json()["paths"]) & {*SGLANG, *PATHS}


def test_every_route_wants_the_key(server: tuple[Inside, httpx.Client]) -> None:
    inside, client = server
    documented = client.get("/openapi.json").json()["paths"]
    assert set(documented) >= {*SGLANG, *PATHS}
    for path in (*SGLANG, *PATHS):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = httpx.post(inside.url + path, json={}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
    # TRL's client has no field for a key; it takes what is in its URL.
    assert httpx.get(f"{inside.url}/get_world_size/", auth=("any", KEY)).json() == {"world_size": 1}
    for auth in (("any", "wrong"), (KEY, "")):
        assert httpx.get(f"{inside.url}/get_world_size/", auth=auth).status_code == 401
    assert httpx.post(f"{inside.url}/pause_generation", auth=("any", KEY)).status_code == 401
    assert httpx.get(f"{inside.url}/get_world_size/", headers={"Authorization": "Basic %%%"}).status_code == 401


def test_a_server_brings_neither_a_trainer_nor_a_configuration_system_with_it() -> None:
    code = (
        "import sys, dlm.serving.app\n"
        "heavy = {'lightning', 'pytorch_lightning', 'hydra', 'trl', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT)


@pytest.mark.parametrize(
    ("given", "key", "message"),
    [
        ("", None, f"weight_control=true needs a key: set {KEY_VARIABLE} in the environment"),
        ("devices=2", KEY, "weight_control=true: the weights of several workers would diverge"),
        ("router=none", KEY, "weight_control=true: the weights of several workers would diverge"),
    ],
)
def test_a_start_without_a_key_or_with_several_workers_is_refused(
    given: str, key: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlm.cli.command_line import compose_config

    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if key is not None:
        monkeypatch.setenv(KEY_VARIABLE, key)
    register()
    with pytest.raises(ConfigError, match="cannot be started") as caught:
        to_settings(compose_config("serve", ["weight_control=true", *given.split()]))
    assert message in str(caught.value)


# Updates


def test_after_an_update_answers_are_those_of_a_fresh_server(
    server: tuple[Inside, httpx.Client], new: tuple[Path, dict[str, torch.Tensor]], expected: str, before: str
) -> None:
    _, client = server
    assert asked(client) == (before, 0) != (expected, 0)
    answer = client.post(DISK, json={"model_path": str(new[0])})
    told = {"success": True, "message": "The weights were updated.", "weight_version": 1, "asleep": []}
    assert answer.json() == told
    assert asked(client) == (expected, 1)
    client.post(DISK, json={"model_path": str(new[0]), "weight_version": "7", "flush_cache": False})
    assert asked(client) == (expected, 7)
    stream = client.post("/v1/chat/completions", json={**ASK, "stream": True}).text
    assert '"weight_version": 7' in stream
    ticket = client.post("/v1/generate", json={"prompt": "Hi", "max_tokens": 8}).json()["request_ids"][0]
    path = f"/v1/result/{ticket}"
    wait_until(lambda: client.get(path).json()["status"] == "finished", "it was finished")
    assert client.get(path).json()["weight_version"] == 7
    echo = {"prompt": "Hi there", "echo": True, "logprobs": 1, "max_tokens": 0}
    assert client.post("/v1/completions", json=echo).json()["dlm"]["weight_version"] == 7


def test_tensors_in_the_body_come_at_once_or_a_few_at_a_time(
    server: tuple[Inside, httpx.Client], new: tuple[Path, dict[str, torch.Tensor]], expected: str, before: str
) -> None:
    _, client = server
    names = list(new[1])
    thirds = [{name: new[1][name] for name in names[start::3]} for start in range(3)]
    answer = client.post(TENSOR, json={"serialized_named_tensors": [encoded(third) for third in thirds]})
    assert answer.json()["message"] == "The weights were updated."
    assert asked(client) == (expected, 1)
    client.post(DISK, json={"model_path": str(CHECKPOINT)})
    for third in thirds[:2]:
        answer = client.post(TENSOR, json={"serialized_named_tensors": [encoded(third)], "flush_cache": False})
        assert answer.json()["message"].endswith("tensors received so far.")
        assert asked(client) == (before, 2)
    body = {"serialized_named_tensors": [encoded(thirds[2])], "flush_cache": False, "weight_version": 9}
    assert client.post(TENSOR, json=body).json()["weight_version"] == 9
    assert asked(client) == (expected, 9)
    assert client.post("/flush_cache").json()["message"] == "Cache flushed."
    assert client.get("/flush_cache").status_code == 200
    assert asked(client) == (expected, 9)


def wrong_updates(folder: Path, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, Any, str, str | None]]:
    """Path, body, what the error says, and its field."""
    first, second = list(tensors)[:2]
    files = "serialized_named_tensors"
    yield DISK, {"model_path": "/nowhere"}, "/nowhere: no such folder", None
    yield DISK, {"model_path": str(folder.parent)}, "only safetensors are read", None
    yield DISK, {}, "model_path", "model_path"
    yield DISK, {"model_path": str(folder), "load_format": "dummy"}, "load_format='dummy'", "load_format"
    yield DISK, {"model_path": str(folder), "is_async": True}, "is_async=true", "is_async"
    for version in ("v2", "", -1, "1.5"):
        yield DISK, {"model_path": str(folder), "weight_version": version}, "whole number", "weight_version"
    yield TENSOR, {files: []}, "missing", None
    yield TENSOR, {files: [encoded({k: v for k, v in tensors.items() if k != first})]}, first, None
    narrow = {**tensors, second: tensors[second][:-1].contiguous()}
    yield TENSOR, {files: [encoded(narrow)]}, f"{second} has shape", None
    yield TENSOR, {files: [encoded({**tensors, "model.odd": tensors[first].clone()})]}, "model.odd is unknown", None
    yield TENSOR, {files: [encoded({first: tensors[first].long()})]}, f"{first} holds torch.int64", None
    yield TENSOR, {files: [encoded({first: tensors[first]})] * 2}, f"{first} is given twice", None
    yield TENSOR, {files: ["%%%"]}, "serialized_named_tensors[0] is not base64 of a safetensors file", f"{files}[0]"
    unread = b64encode(pickle.dumps({first: 1})).decode()
    yield TENSOR, {files: [unread]}, "is a pickle, which could run arbitrary code", f"{files}[0]"
    yield TENSOR, {files: "text"}, "array", files
    yield "/pause_generation", {"mode": "retract"}, "mode='retract' is not supported", "mode"
    yield "/pause_generation", {"mode": "never"}, "mode", "mode"
    yield "/release_memory_occupation", {"tags": ["cuda_graph"]}, "'weights' or 'kv_cache'", "tags.0"
    yield "/resume_memory_occupation", {"tags": ["x"]}, "'weights' or 'kv_cache'", "tags.0"


@pytest.mark.parametrize("slot", ["__truediv__", "exists", "_str"])
def test_a_hostile_folder_leaves_the_server_as_it_was(
    server: tuple[Inside, httpx.Client],
    new: tuple[Path, dict[str, torch.Tensor]],
    expected: str,
    before: str,
    tmp_path: Path,
    slot: str,
) -> None:
    """Metadata that set attributes of the class of all paths: the update is refused, and the next one is right."""
    _, client = server
    setting = named("pathlib.PosixPath") + b"N}" + text(slot) + named("pathlib.PosixPath") + b"s\x86b."
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / ".metadata").write_bytes(b"\x80\x04" + setting)
    os.mkfifo(tmp_path / "hostile" / "__0_0.distcp")
    own = {name: id(value) for name, value in vars(type(tmp_path)).items()}
    answer = client.post(DISK, json={"model_path": str(tmp_path / "hostile")})
    assert answer.status_code == 400
    assert ".metadata cannot be used" in answer.json()["error"]["message"]
    assert {name: id(value) for name, value in vars(type(tmp_path)).items()} == own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile"]
    assert asked(client) == (before, 0)
    assert client.post(DISK, json={"model_path": str(new[0])}).status_code == 200
    assert asked(client) == (expected, 1)


def test_wrong_updates_are_named_and_change_nothing(
    server: tuple[Inside, httpx.Client], new: tuple[Path, dict[str, torch.Tensor]], before: str
) -> None:
    _, client = server
    for path, body, message, field in wrong_updates(*new):
        answer = client.post(path, json=body)
        assert answer.status_code == 400, (path, answer.text)
        error = answer.json()["error"]
        assert message in error["message"], error
        assert error["param"] == field, error
    assert asked(client) == (before, 0)
    half = {name: new[1][name] for name in list(new[1])[:5]}
    client.post(TENSOR, json={"serialized_named_tensors": [encoded(half)], "flush_cache": False})
    answer = client.post("/flush_cache")
    assert answer.status_code == 400
    assert "tensors are missing" in answer.json()["error"]["message"]
    assert asked(client) == (before, 0)


def test_an_update_waits_for_what_runs_and_what_comes_waits_for_it(
    server: tuple[Inside, httpx.Client],
    new: tuple[Path, dict[str, torch.Tensor]],
    expected: str,
    meanwhile: ThreadPoolExecutor,
) -> None:
    inside, client = server
    alone = asked(client, **LONG)
    with inside.held() as held:
        running_one = meanwhile.submit(asked, client, **LONG)
        held.wait()
        update = meanwhile.submit(client.post, DISK, json={"model_path": str(new[0])})
        wait_until(lambda: bool(inside.service.thread._tasks), "the update waits")
        late = meanwhile.submit(asked, client)
    assert update.result().status_code == 200
    assert running_one.result() == alone
    assert late.result() == (expected, 1)


def test_among_many_updates_each_answer_is_wholly_of_the_version_that_it_names(
    server: tuple[Inside, httpx.Client],
    new: tuple[Path, dict[str, torch.Tensor]],
    meanwhile: ThreadPoolExecutor,
) -> None:
    _, client = server
    bodies = [{"seed": seed, "n": 1 + seed % 3, "max_tokens": 16 + 16 * (seed % 3)} for seed in range(8)]

    def answers(body: dict[str, Any]) -> tuple[list[str], int]:
        found = client.post("/v1/chat/completions", json={**ASK, **body}).json()
        return [choice["message"]["content"] for choice in found["choices"]], found["dlm"]["weight_version"]

    folders = (CHECKPOINT, new[0])
    expected = {}
    for parity, folder in ((0, CHECKPOINT), (1, new[0])):
        client.post(DISK, json={"model_path": str(folder), "weight_version": parity})
        expected[parity] = [answers(body)[0] for body in bodies]
    assert expected[0] != expected[1]
    for last in range(1, 7):
        asks = [meanwhile.submit(answers, body) for body in bodies]
        update = {"model_path": str(folders[(last + 1) % 2]), "weight_version": last + 1}
        assert client.post(DISK, json=update).status_code == 200
        for wanted, ask in enumerate(asks):
            text, version = ask.result()
            assert version in (last, last + 1)
            assert text == expected[version % 2][wanted]


def test_an_update_can_give_up_what_runs(
    server: tuple[Inside, httpx.Client],
    new: tuple[Path, dict[str, torch.Tensor]],
    expected: str,
    meanwhile: ThreadPoolExecutor,
) -> None:
    inside, client = server
    body = {"model_path": str(new[0]), "abort_all_requests": True, "keep_pause": True}
    with inside.held() as held:
        given_up = meanwhile.submit(client.post, "/v1/chat/completions", json={**ASK, **LONG})
        held.wait()
        update = meanwhile.submit(client.post, DISK, json=body)
        wait_until(lambda: bool(inside.service.thread._tasks), "the update waits")
    assert update.result().status_code == 200
    answer = given_up.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "aborted")
    later = meanwhile.submit(asked, client)
    wait_until(lambda: inside.service.thread.load().waiting == 1, "it waits")
    client.post("/continue_generation")
    assert later.result() == (expected, 1)


def test_a_torn_update_is_told_until_another_succeeds(
    server: tuple[Inside, httpx.Client],
    new: tuple[Path, dict[str, torch.Tensor]],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, client = server
    write, count = WeightWriter.write, iter(range(100))

    def breaking(self: WeightWriter, name: str, tensor: torch.Tensor) -> None:
        if next(count) == 3:
            raise RuntimeError("the device is gone")
        write(self, name, tensor)

    with monkeypatch.context() as patch:
        patch.setattr(WeightWriter, "write", breaking)
        assert client.post(DISK, json={"model_path": str(new[0])}).status_code == 500
    for path, body in (
        ("/v1/chat/completions", ASK),
        ("/v1/completions", {"prompt": "Hi there", "echo": True, "logprobs": 1, "max_tokens": 0}),
        ("/v1/generate", {"prompt": "Hi"}),
    ):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "weights_unavailable")
        assert "the update to version 1 failed partway" in answer.json()["error"]["message"]
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    assert client.post(DISK, json={"model_path": str(new[0])}).status_code == 200
    assert client.get("/ready").status_code == 200
    assert asked(client) == (expected, 1)


# Pauses


def test_a_request_decoded_across_a_pause_goes_on(
    server: tuple[Inside, httpx.Client], new: tuple[Path, dict[str, torch.Tensor]], meanwhile: ThreadPoolExecutor
) -> None:
    inside, client = server
    alone = asked(client, **LONG)
    with inside.held() as held:
        across: Future[tuple[str, int]] = meanwhile.submit(asked, client, **LONG)
        held.wait()
        assert client.post("/pause_generation", json={"mode": "in_place"}).json()["status"] == "ok"
    answer = client.post(DISK, json={"model_path": str(new[0])})
    assert answer.status_code == 409
    assert "requests are paused in mid-generation" in answer.json()["error"]["message"]
    waiting = meanwhile.submit(asked, client)
    wait_until(lambda: inside.service.thread.load().waiting == 1, "it waits")
    assert not across.done()
    client.post("/continue_generation", json={})
    assert across.result() == alone
    assert waiting.result()[1] == 0


def test_a_pause_gives_up_what_runs_unless_told_otherwise(
    server: tuple[Inside, httpx.Client], before: str, meanwhile: ThreadPoolExecutor
) -> None:
    inside, client = server
    with inside.held() as held:
        given_up = meanwhile.submit(client.post, "/v1/chat/completions", json={**ASK, **LONG})
        held.wait()
        pause = meanwhile.submit(client.post, "/pause_generation")
        wait_until(lambda: bool(inside.service.thread._tasks), "the pause waits")
    assert pause.result().status_code == 200
    assert given_up.result().json()["error"]["message"] == "aborted because the server was paused; send it again"
    waiting = meanwhile.submit(asked, client)
    wait_until(lambda: inside.service.thread.load().waiting == 1, "it waits")
    client.post("/continue_generation")
    assert waiting.result() == (before, 0)


def test_a_folder_that_cannot_be_taken_is_refused_before_anything_waits_or_is_given_up(
    server: tuple[Inside, httpx.Client], meanwhile: ThreadPoolExecutor
) -> None:
    inside, client = server
    with inside.held() as held:
        running = meanwhile.submit(asked, client)
        held.wait()
        for path in ("/nowhere", "a" * 300):
            answer = client.post(DISK, json={"model_path": path, "abort_all_requests": True})
            assert answer.status_code == 400, answer.text
        assert held.begun == 1  # the same forward is still going on
        held.release()
        assert running.result()[1] == 0


# Sleep


def test_asleep_the_server_says_so_and_awake_it_is_as_before(
    server: tuple[Inside, httpx.Client], new: tuple[Path, dict[str, torch.Tensor]], before: str, expected: str
) -> None:
    inside, client = server
    assert asked(client) == (before, 0)
    backbone = inside.service.weights.control.checkpoint.backbone  # type: ignore[union-attr]  # it is on
    for _ in range(2):
        assert client.post("/release_memory_occupation").json()["asleep"] == ["kv_cache", "weights"]
        assert client.post("/flush_cache").status_code == 200
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 0
    assert inside.service.thread.decoder.arena.keys is None
    answer = client.post("/v1/chat/completions", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "weights_unavailable")
    assert "asleep: kv_cache, weights; POST /resume_memory_occupation first" in answer.json()["error"]["message"]
    answer = client.post(DISK, json={"model_path": str(new[0])})
    assert answer.status_code == 409
    assert "/resume_memory_occupation" in answer.json()["error"]["message"]
    assert client.post("/resume_memory_occupation", json={"tags": ["weights"]}).json()["asleep"] == ["kv_cache"]
    assert client.post("/v1/chat/completions", json=ASK).status_code == 503
    assert client.post("/resume_memory_occupation", json={"tags": ["kv_cache"]}).json()["asleep"] == []
    assert asked(client) == (before, 0)
    client.post("/release_memory_occupation", json={"tags": ["kv_cache"]})
    assert client.post(DISK, json={"model_path": str(new[0])}).status_code == 200
    client.post("/resume_memory_occupation")
    assert asked(client) == (expected, 1)
