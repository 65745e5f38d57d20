"""What a server does between two steps: watch, cancel, and after a failure find the request at fault."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import BlockCausal
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Progress, Request
from dlm.decoding.samplers import Threshold
from tests.decoding.drawing import draw_request, facts
from tests.decoding.worlds import BY_NAME, MASK, SPECIAL, tiny_model

POISON = 3
"""A prompt token at which the model of these tests raises."""


@pytest.fixture(name="subject")
def small_decoder() -> Decoder:
    return Decoder(tiny_model().backbone, SPECIAL, DecoderOptions(max_num_seqs=12, arena_tokens=4000, poison=True))


def mix(seed: int, count: int, **more: Any) -> list[Request]:
    chance = random.Random(seed)
    drawn = [draw_request(chance, f"r{index}") for index in range(count)]
    clean = [tuple(POISON + 1 if token == POISON else token for token in one.prompt_ids) for one in drawn]
    return [dataclasses.replace(one, prompt_ids=ids, **more) for one, ids in zip(drawn, clean, strict=True)]


def solo(request: Request) -> list[Any]:
    alone = Decoder(tiny_model().backbone, SPECIAL, DecoderOptions(arena_tokens=4000))
    return [facts(one) for one in alone.run([request])]


def make_poisonous(subject: Decoder, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let forwards that hold the token `POISON` raise."""
    forward = subject.backbone.forward

    def raising(token_ids: Tensor, *arguments: Any) -> Tensor:
        if (token_ids == POISON).any():
            raise error
        return forward(token_ids, *arguments)

    monkeypatch.setattr(subject.backbone, "forward", raising)


def drive(subject: Decoder, each_step: Callable[[], None] = lambda: None) -> list[Completion]:
    """As a server does it: step, and step apart when that raises."""
    done: list[Completion] = []
    while subject.has_work:
        each_step()
        if not subject.has_work:
            break
        try:
            done += subject.step()[0]
        except Exception:
            done += subject.step_apart()
    return done


def cpu_is_full() -> Exception:
    """What torch raises when a CPU has not enough memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (RuntimeError("broken kernel"), "failed"),
        (torch.OutOfMemoryError("full"), "out_of_memory"),
        (cpu_is_full(), "out_of_memory"),
    ],
    ids=["broken", "gpu", "cpu"],
)
def test_a_forward_that_raises_ends_its_request_alone(
    subject: Decoder, monkeypatch: pytest.MonkeyPatch, error: Exception, fault: str
) -> None:
    requests = mix(1, 10)
    for index in (2, 7):
        requests[index] = dataclasses.replace(requests[index], prompt_ids=(POISON, *requests[index].prompt_ids[1:]))
    make_poisonous(subject, monkeypatch, error)
    for request in requests:
        subject.add(request)
    done = drive(subject)
    failed = {one.request_id: one for one in done if one.error is not None}
    assert set(failed) == {"r2", "r7"}
    assert all(one.fault == fault and str(error) in str(one.error) for one in failed.values())
    for request in requests:
        if request.id not in failed:
            assert [facts(one) for one in done if one.request_id == request.id] == solo(request)
    assert subject.arena.ranges.num_taken == 0


def test_a_stop_rule_that_raises_ends_its_request_alone_and_answers_finished_beside_it_are_kept(
    subject: Decoder,
) -> None:
    def broken(tokens: Any) -> bool:
        raise ValueError("no such rule")

    requests = mix(2, 12)
    requests[3] = dataclasses.replace(requests[3], should_stop=broken)
    for request in requests:
        subject.add(request)
    done = drive(subject)
    failed = [one for one in done if one.error is not None]
    assert [one.request_id for one in failed] == ["r3"]
    assert "no such rule" in str(failed[0].error)
    for request in requests:
        if request.id != "r3":
            assert [facts(one) for one in done if one.request_id == request.id] == solo(request)


def test_a_first_sample_that_fails_leaves_nobody_waiting_for_its_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = BY_NAME["sdar"].decoder(max_num_seqs=2, arena_tokens=400)
    make_poisonous(subject, monkeypatch, RuntimeError("broken"))
    params = SamplingParams(gen_length=16, block_length=8, temperature=1.0, n=4, seed=1)
    for name, prompt in (("bad", (POISON, 5, 6, 7, 8, 9, 10, 11)), ("good", (4, 5, 6, 7, 8, 9, 10, 11))):
        subject.add(Request(name, prompt, params, BlockCausal(), Threshold()))
    done = drive(subject)
    assert [one.request_id for one in done if one.error] == ["bad"]
    assert sorted(one.sample for one in done if one.request_id == "good") == [0, 1, 2, 3]
    assert subject.arena.ranges.num_taken == 0


def test_a_cancelled_request_is_gone_and_its_ranges_are_free_before_the_next_step(subject: Decoder) -> None:
    chance = random.Random(5)
    requests = [dataclasses.replace(one, params=dataclasses.replace(one.params, n=1)) for one in mix(3, 30)]
    for request in requests:
        subject.add(request)
    cancelled: set[str] = set()

    def cancel_some() -> None:
        ids = sorted({canvas.request.id for canvas in subject.scheduler.running})
        if ids and len(cancelled) < 12:
            name = chance.choice([*ids, requests[-1 - len(cancelled)].id])
            before = subject.arena.ranges.num_taken
            running = name in ids
            if subject.cancel(name):
                cancelled.add(name)
                assert subject.arena.ranges.num_taken <= before
                assert not running or name not in {canvas.request.id for canvas in subject.scheduler.running}

    done = drive(subject, cancel_some)
    assert len(cancelled) >= 8
    assert not subject.cancel("r0")
    for request in requests:
        got = [facts(one) for one in done if one.request_id == request.id]
        assert got == ([] if request.id in cancelled else solo(request))
    assert subject.arena.ranges.num_taken == 0


def test_what_a_watcher_sees_adds_up_to_the_answer(subject: Decoder) -> None:
    seen: dict[str, list[Progress]] = {}
    requests = [
        dataclasses.replace(one, watch=seen.setdefault(one.id, []).append, params=dataclasses.replace(one.params, n=1))
        for one in mix(4, 16)
    ]
    for request in requests:
        subject.add(request)
    for completion in drive(subject):
        steps = seen[completion.request_id]
        assert [one.step for one in steps] == list(range(1, completion.nfe + 1))
        canvas = [MASK] * len(completion.canvas_ids)
        for one in steps:
            for position in one.cleared:
                canvas[position] = MASK
            for position, token in zip(one.positions, one.tokens, strict=True):
                if position >= 0:
                    canvas[position] = token
        assert tuple(canvas) == completion.canvas_ids
        settled = [one.settled for one in steps if one.settled is not None]
        assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(settled))
        limit = next(one for one in requests if one.id == completion.request_id).params.max_tokens
        assert settled[-1][:limit] == completion.token_ids
