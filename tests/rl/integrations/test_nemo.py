"""A stand-in for NeMo-RL's training loop: keys, shapes, padding, repeated calls, weights over both transports."""

from __future__ import annotations

import enum
import inspect
import socket
import threading
from collections import UserDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from dlm.errors import CheckpointError, ConfigError, RequestError, RunError
from dlm.rl import Rollouts
from dlm.rl.integrations.nemo import NemoGeneration
from dlm.rl.weights import refit
from dlm.rl.weights.refit import TorchGroup
from dlm.sampling_params import SamplingParams
from tests.rl.subjects import OPTIONS, PROMPTS, WARM, bits, equal, fresh, rollouts_of, stored
from tests.running import TIMEOUT

PAD = 77
METHODS = (
    "init_collective", "generate", "prepare_for_generation", "finish_generation", "shutdown", "prepare_refit_info",
    "update_weights_via_ipc_zmq", "update_weights_from_collective", "invalidate_kv_cache",
)  # fmt: skip


class BatchedDataDict(UserDict[str, Any]):
    """What NeMo-RL hands in and expects back."""


class Said(enum.Enum):
    """Its words over ZMQ."""

    COMPLETE = "complete"


def padded(prompts: Any = PROMPTS, **extra: Any) -> BatchedDataDict:
    width = max(map(len, prompts)) + 3
    rows = [[*prompt, *[PAD] * (width - len(prompt))] for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return BatchedDataDict({"input_ids": torch.tensor(rows), "input_lengths": lengths, **extra})


def backend(params: SamplingParams = WARM, **arguments: Any) -> NemoGeneration:
    return NemoGeneration(rollouts_of(), params, **{"pad_token_id": PAD, **arguments})


def check(data: Mapping[str, Any], out: Any) -> None:
    """The contract, from the outside."""
    assert type(out) is type(data)
    assert set(out) == {"output_ids", "generation_lengths", "unpadded_sequence_lengths", "logprobs", "truncated"}
    count, width = out["output_ids"].shape
    assert count == len(data["input_ids"])
    assert out["logprobs"].shape == (count, width)
    for name in ("generation_lengths", "unpadded_sequence_lengths", "truncated"):
        assert out[name].shape == (count,)
    assert out["truncated"].dtype == torch.bool
    assert out["output_ids"].dtype == torch.int64
    assert out["logprobs"].dtype == torch.float32
    for row in range(count):
        prompt, whole = int(data["input_lengths"][row]), int(out["unpadded_sequence_lengths"][row])
        assert whole == prompt + int(out["generation_lengths"][row]) <= width
        assert torch.equal(out["output_ids"][row, :prompt], data["input_ids"][row, :prompt])
        assert (out["output_ids"][row, whole:] == PAD).all()
        assert (out["logprobs"][row, :prompt] == 0).all()
        assert (out["logprobs"][row, whole:] == 0).all()
        assert (out["logprobs"][row, prompt:whole] <= 0).all()
        assert 511 not in out["output_ids"][row, prompt:whole]


def test_it_has_the_methods_of_the_interface() -> None:
    assert set(METHODS) <= {name for name, _ in inspect.getmembers(NemoGeneration, inspect.isfunction)}
    assert list(inspect.signature(NemoGeneration.generate).parameters)[1:] == ["data", "greedy"]
    collective = inspect.signature(NemoGeneration.init_collective).parameters
    assert list(collective)[1:] == ["ip", "port", "world_size", "train_world_size"]


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("logprobs", ["raw", "processed"])
def test_a_batch_has_the_keys_shapes_and_padding_of_the_contract(greedy: bool, logprobs: str) -> None:
    data, generation = padded(), backend(logprobs=logprobs)
    out = generation.generate(data, greedy=greedy)
    check(data, out)
    plain = generation.generate(dict(data), greedy=greedy)
    check(dict(data), plain)
    same = [torch.equal(out[name], plain[name]) for name in out]
    assert all(same) == greedy  # the noise of another call is another
    answers = torch.cat([out["logprobs"][row, len(prompt) :] for row, prompt in enumerate(PROMPTS)])
    assert (answers == 0).all() == (greedy and logprobs == "processed")


def test_rows_are_the_rollouts_of_their_prompts_and_hold_the_end_token() -> None:
    prompts = [PROMPTS[0]] * 6 + [PROMPTS[1]] * 6
    data, generation = padded(prompts), backend(replace(WARM, gen_length=48, temperature=1.5, seed=None))
    seen: list[Any] = []
    generate = Rollouts.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rollouts, "generate", lambda *given, **named: seen.append(generate(*given, **named)) or seen[-1])
        out = generation.generate(data)
    check(data, out)
    ends = 0
    for row, rollout in enumerate(seen[0]):
        start, stop = len(rollout.prompt_ids), int(out["unpadded_sequence_lengths"][row])
        tokens = out["output_ids"][row, start:stop].tolist()
        assert tuple(tokens[: len(rollout.token_ids)]) == rollout.token_ids
        assert len(tokens) == len(rollout.token_ids) + (rollout.finish_reason == "stop")
        assert bool(out["truncated"][row]) == (rollout.finish_reason == "length")
        expected = torch.tensor(rollout.logprobs_raw[: len(tokens)], dtype=torch.float32)
        assert torch.equal(out["logprobs"][row, start:stop], expected)
        ends += rollout.finish_reason == "stop"
        if rollout.finish_reason == "stop":
            assert tokens[-1] in (510, 509)
    assert 0 < ends < 12
    assert len({tuple(row.tolist()) for row in out["output_ids"][:6]}) == 6


def test_a_seed_reproduces_a_run_and_tells_equal_rows_apart() -> None:
    data = padded([PROMPTS[0]] * 4)
    first, second = backend(), backend()
    runs = [[generation.generate(data)["output_ids"] for _ in range(2)] for generation in (first, second)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    assert not torch.equal(*runs[0])
    assert len({tuple(row.tolist()) for row in runs[0][0]}) == 4


def test_stop_strings_end_answers_and_stay_in_them() -> None:
    rollouts = Rollouts.load("demo", device="cpu")
    codec = rollouts.codec
    assert codec is not None
    prompts = [
        codec.encode(text) for text in ("What is 3 + 4?", "What is the capital of Peru?", "Reverse the word garden.")
    ]
    params = SamplingParams(gen_length=32, temperature=0.0)
    generation = NemoGeneration(rollouts, params, pad_token_id=PAD)

    def tokens(stop_strings: Any) -> list[list[int]]:
        out = generation.generate(padded(prompts, stop_strings=stop_strings), greedy=True)
        check(padded(prompts), out)
        spans = zip(out["output_ids"], map(len, prompts), out["unpadded_sequence_lengths"], strict=True)
        return [row[start:stop].tolist() for row, start, stop in spans]

    plain, for_all, each = tokens(None), tokens(["i", "d"]), tokens([["i"], None, ["amp", "zz"]])
    assert plain[1] == each[1]
    assert len(for_all[1]) < len(plain[1])
    for short, whole, stops in ((for_all[1], plain[1], ["i", "d"]), (each[2], plain[2], ["amp", "zz"])):
        assert whole[: len(short)] == short
        assert any(stop in codec.decode(short) for stop in stops)
        assert not any(stop in codec.decode(short[:-1]) for stop in stops)
    with pytest.raises(RequestError, match="2 stop_strings for 3 rows"):
        tokens([["a"], ["b"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "the batch is missing input_ids; it has input_lengths"),
        ({"input_ids": torch.zeros(3)}, r"input_ids has shape \[3\]"),
        ({"input_ids": torch.zeros(3, 4)}, "integer"),
        ({"input_lengths": torch.tensor([1, 2])}, r"input_lengths \[2\]"),
        ({"input_lengths": torch.tensor([1, 0, 2])}, r"input_lengths\[1\]=0 must be 1..24"),
        ({"input_lengths": torch.tensor([1, 2, 25])}, r"input_lengths\[2\]=25 must be 1..24"),
    ],
)
def test_batches_of_another_shape_are_refused(change: dict[str, Any], message: str) -> None:
    data = {name: value for name, value in {**padded(), **change}.items() if value is not None}
    with pytest.raises(RequestError, match=message):
        backend().generate(data)


def test_phases_may_be_entered_and_left_again_and_again() -> None:
    generation = backend(replace(WARM, temperature=0.0))
    data = padded()
    first = generation.generate(data)
    for _ in range(2):
        assert generation.prepare_for_generation() is True
        assert generation.prepare_for_generation(tags=["weights"]) is True
        assert generation.invalidate_kv_cache() is True
        assert torch.equal(generation.generate(data)["output_ids"], first["output_ids"])
        assert generation.finish_generation(release_gpu=False) is True
        assert torch.equal(generation.generate(data)["output_ids"], first["output_ids"])
        assert generation.finish_generation() is True
        assert generation.finish_generation() is True
        assert sum(each.numel() for each in generation.rollouts.checkpoint.backbone.parameters()) == 0
        with pytest.raises(RunError, match="asleep"):
            generation.generate(data)
    assert generation.shutdown() is True
    assert generation.shutdown() is True
    assert generation.finish_generation() is True
    for call in (lambda: generation.generate(data), generation.prepare_for_generation, generation.invalidate_kv_cache):
        with pytest.raises(RunError, match="was shut down"):
            call()


def test_a_backend_that_shares_the_trainers_weights_leaves_them_alone() -> None:
    model = fresh()
    generation = NemoGeneration(Rollouts(model, trainer=model.backbone, options=OPTIONS), WARM, pad_token_id=PAD)
    generation.prepare_refit_info({})
    generation.finish_generation()
    assert model.backbone.embedding.weight.numel() > 0
    generation.prepare_for_generation()
    check(padded(), generation.generate(padded()))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="logprobs='mean' must be one of raw, processed"):
        backend(logprobs="mean")
    generation = backend()
    with pytest.raises(RunError, match="call init_collective first"):
        generation.update_weights_from_collective()
    with pytest.raises(RunError, match="pass refit_address="):
        generation.update_weights_via_ipc_zmq()
    with pytest.raises(ConfigError, match="world_size=2 with train_world_size=2 leaves no rank"):
        generation.init_collective("127.0.0.1", 1, 2, train_world_size=2)


# Weights


def info_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (list(tensor.shape), tensor.dtype) for name, tensor in weights.items()}


def test_refit_info_is_checked_before_anything_is_sent_asleep_too() -> None:
    generation, weights = backend(), stored(fresh())
    generation.finish_generation()
    generation.prepare_refit_info(info_of(weights))
    generation.prepare_refit_info(info_of(weights))
    weights.pop(next(iter(weights)))
    with pytest.raises(CheckpointError, match="1 missing"):
        generation.prepare_refit_info(info_of(weights))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("packed_bytes", [0, 20_000, 1 << 30])
def test_weights_come_by_broadcast(packed_bytes: int) -> None:
    """The trainer is rank 0 of a group; a thread stands in for it."""
    trained, port = fresh(stirred=0.3), free_port()
    weights = stored(trained)

    def train() -> None:
        group = TorchGroup("127.0.0.1", port, 0, 2, torch.device("cpu"))
        for _ in range(2):
            waiting: list[Tensor] = []
            for tensor in [*weights.values(), None]:
                if tensor is not None:
                    waiting.append(tensor.contiguous().view(torch.uint8).flatten())
                full = sum(part.numel() for part in waiting) > packed_bytes
                if waiting and (tensor is None or full):
                    group.broadcast(torch.cat(waiting), 0)
                    waiting = []

    generation = backend(packed_bytes=packed_bytes)
    generation.prepare_refit_info(info_of(weights))
    with ThreadPoolExecutor(1) as pool:
        trainer = pool.submit(train)
        assert generation.init_collective("127.0.0.1", port, 2, train_world_size=1) == []
        for version in (1, 2):
            assert generation.update_weights_from_collective() == []
            assert generation.rollouts.weight_version == version
        trainer.result(TIMEOUT)
    assert equal(bits(generation.rollouts.checkpoint.backbone), bits(trained.backbone))
    generation.shutdown()


@contextmanager
def sender(address: str, messages: list[Any]) -> Iterator[list[bytes]]:
    """A training worker's side: it binds, sends each message and waits for the answer to it, at most until the end."""
    answers: list[bytes] = []
    over = threading.Event()

    def send() -> None:
        with zmq.Context() as context, context.socket(zmq.REQ) as wire:
            wire.linger = 0
            wire.bind(address)
            for message in messages:
                wire.send_pyobj(message)
                while not wire.poll(50):
                    if over.is_set():
                        return
                answers.append(wire.recv())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def buffers(weights: Mapping[str, Tensor], size: int) -> list[Any]:
    """Tensors on multiples of 512 bytes in buffers of about `size`, as NeMo-RL announces them."""
    messages: list[Any] = []
    names: list[str] = []
    parts: list[Tensor] = []
    for name, tensor in [*weights.items(), ("", None)]:
        if names and (tensor is None or sum(map(len, parts)) > size):
            used = sum(map(len, parts))
            messages.append((reduce_tensor(torch.cat([*parts, torch.zeros(64, dtype=torch.uint8)]))[1:], names, used))
            names, parts = [], []
        if tensor is not None:
            raw = tensor.contiguous().view(torch.uint8).flatten()
            names.append(name)
            parts.append(torch.nn.functional.pad(raw, (0, -len(raw) % 512)))
    return [*messages, Said.COMPLETE]


def test_weights_come_through_shared_memory(tmp_path: Path) -> None:
    trained, address = fresh(stirred=0.3), f"ipc://{tmp_path}/refit.sock"
    weights = stored(trained)
    generation = backend(refit_address=address)
    generation.prepare_refit_info(info_of(weights))
    generation.finish_generation()
    generation.prepare_for_generation(tags=["weights"])
    messages = buffers(weights, 200_000)
    assert len(messages) > 3
    with sender(address, messages) as answers:
        assert generation.update_weights_via_ipc_zmq() == []
    assert answers == [b"ack"] * len(messages)
    generation.prepare_for_generation(tags=["kv_cache"])
    assert generation.rollouts.weight_version == 1
    expected = Rollouts(trained, options=OPTIONS, weight_version=1).generate(PROMPTS, WARM)
    assert generation.rollouts.generate(PROMPTS, WARM) == expected


def test_shared_memory_that_is_not_what_was_announced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = stored(fresh(stirred=0.3))
    good = buffers(weights, 1 << 30)
    handle, names, used = good[0]
    cases = [
        ([(handle, names, used + 512)], "bytes were sent, prepare_refit_info makes them"),
        ([(handle, ["other.weight", *names[1:]], used)], "sent other.weight, which prepare_refit_info did not name"),
        (["stop"], "said 'stop', which is neither a buffer nor the end"),
        ([], "no weights came at ipc://.* within 1 s"),
    ]
    for number, (messages, message) in enumerate(cases):
        if not messages:
            monkeypatch.setattr(refit, "TIMEOUT", refit.timedelta(seconds=1))
        address = f"ipc://{tmp_path}/{number}.sock"
        generation = backend(refit_address=address)
        generation.prepare_refit_info(info_of(weights))
        before = bits(generation.rollouts.checkpoint.backbone)
        with sender(address, messages), pytest.raises(RunError, match=message):
            generation.update_weights_via_ipc_zmq()
        assert equal(bits(generation.rollouts.checkpoint.backbone), before)
