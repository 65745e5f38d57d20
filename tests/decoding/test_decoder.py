"""What the loop promises: one call a step, nothing padded or leaked, progress, ends, and errors that stay local."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import DualCache, Full, PrefixCache
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Factor, Fixed, Threshold
from dlm.decoding.types import Scores, StepContext
from dlm.errors import RequestError
from dlm.models.attention import NaiveAttention
from dlm.models.attention.segments import Segment
from tests.decoding.drawing import draw_request, facts
from tests.decoding.worlds import EOS, EOT, MASK, SPECIAL, tiny_model

GREEDY = SamplingParams(gen_length=24, block_length=8, steps=24, temperature=0.0, ignore_eos=True, seed=1, record=True)


def change(**values: Any) -> SamplingParams:
    return dataclasses.replace(GREEDY, **values)


def ask(params: SamplingParams = GREEDY, prompt: Sequence[int] = (5, 6, 7, 8), **more: Any) -> Request:
    return Request(
        **{"id": "a", "engine": DualCache(), "sampler": Threshold(), **more}, prompt_ids=tuple(prompt), params=params
    )


def decoder(**options: Any) -> Decoder:
    return Decoder(tiny_model().backbone, SPECIAL, DecoderOptions(**{"arena_tokens": 4000, "poison": True, **options}))


def answer(request: Request, **options: Any) -> Completion:
    (completion,) = decoder(**options).run([request])
    return completion


def test_one_model_call_a_step_with_the_windows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(4)
    requests = [draw_request(chance, f"r{i}") for i in range(20)]
    subject = decoder(max_num_seqs=20)
    rows: list[int] = []
    forward = type(subject.backbone).forward

    def counted(self: Any, token_ids: Tensor, positions: Tensor, attention: Any, *rest: Any) -> Tensor:
        rows.append(len(token_ids))
        assert len(token_ids) == sum(segment.rows for segment in attention.segments)
        return forward(self, token_ids, positions, attention, *rest)

    monkeypatch.setattr(type(subject.backbone), "forward", counted)
    reports = []
    completions = list(subject.run(requests, on_step=reports.append))
    assert len(rows) == subject.stats.num_steps == len(reports)
    assert rows == [report.num_rows for report in reports]
    assert sum(rows) == sum(completion.positions for completion in completions)
    assert max(report.num_canvases for report in reports) == 20


def test_the_head_sees_only_masked_positions_of_active_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = decoder()
    rows: list[int] = []
    head = type(subject.backbone).head

    def counted(self: Any, hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return head(self, hidden)

    monkeypatch.setattr(type(subject.backbone), "head", counted)
    list(subject.run([ask(sampler=Fixed(), engine=Full())]))
    assert rows == [8, 8, 8, 8, 4, 4, 4, 4] * 3  # rounded up to whole tiles


@pytest.mark.parametrize("engine", [Full(), PrefixCache(), DualCache()])
def test_arena_ranges_come_back_also_when_a_run_is_dropped(engine: Any) -> None:
    subject = decoder(max_num_seqs=4, arena_tokens=150)
    run = subject.run(ask(engine=engine, id=str(i), params=change(cfg_scale=1.0)) for i in range(9))
    next(run)
    run.close()
    assert subject.arena.ranges.num_taken == 0
    assert not subject.has_work
    assert len(list(subject.run([ask(engine=engine)]))) == 1


def test_more_requests_than_the_arena_holds_wait() -> None:
    subject = decoder(max_num_seqs=8, arena_tokens=60)
    reports = []
    completions = list(subject.run([ask(id=str(i)) for i in range(5)], on_step=reports.append))
    assert len(completions) == 5
    assert max(report.num_canvases for report in reports) == 2


def test_step_map_and_logprobs_are_those_of_a_replay() -> None:
    completion = answer(ask(engine=Full(), sampler=Threshold(0.4), params=change(temperature=0.7, seed=3)))
    assert completion.step_map is not None
    assert completion.logprobs is not None
    steps, tokens = np.array(completion.step_map), np.array(completion.canvas_ids)
    assert sorted(set(steps)) == list(range(1, completion.nfe + 1))
    model = tiny_model().backbone
    for step in range(1, completion.nfe + 1):
        canvas = np.concatenate(([5, 6, 7, 8], np.where(steps < step, tokens, MASK)))
        with torch.inference_mode():
            ids = torch.from_numpy(canvas)
            hidden = model(ids, torch.arange(len(ids)), NaiveAttention([Segment(0, len(ids))]))
            logprobs = model.head(hidden).log_softmax(-1)
        for place in np.flatnonzero(steps == step):
            assert completion.logprobs[place] == pytest.approx(float(logprobs[place + 4, tokens[place]]), abs=1e-3)


@pytest.mark.parametrize("engine", [Full(), PrefixCache(), DualCache()])
@pytest.mark.parametrize("budget", [3, 5, 11])
def test_max_nfe_is_kept_and_no_mask_survives(engine: Any, budget: int) -> None:
    completion = answer(ask(engine=engine, sampler=Fixed(), params=change(max_nfe=budget)))
    assert completion.nfe <= budget
    assert MASK not in completion.canvas_ids


def test_a_sampler_that_picks_nothing_still_progresses() -> None:
    @dataclasses.dataclass(frozen=True)
    class Idle(Threshold):
        def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[np.ndarray, Any]:
            return np.zeros(0, dtype=np.int64), None

    completion = answer(ask(sampler=Idle()))
    assert completion.nfe == 24
    assert MASK not in completion.canvas_ids


def test_a_model_that_predicts_the_mask_id_is_made_to_choose_another() -> None:
    model = tiny_model("float64").backbone
    saved = model.lm_head.weight.data.clone()
    try:
        model.lm_head.weight.data[MASK] = 3 * saved.norm(dim=1).mean() * saved[3] / saved[3].norm()
        for sampler in (Fixed(), Threshold(0.5), Factor(1.0)):
            (completion,) = Decoder(model, SPECIAL, DecoderOptions(arena_tokens=100)).run([ask(sampler=sampler)])
            assert MASK not in completion.canvas_ids
            assert completion.nfe <= 24
    finally:
        model.lm_head.weight.data.copy_(saved)


def test_infilling_keeps_what_is_given_and_fills_the_rest() -> None:
    prompt = [5, MASK, 7, 8, MASK, MASK, 9]
    completion = answer(ask(prompt=prompt, sampler=Fixed(), params=change(gen_length=4, steps=8)))
    assert [a for a, b in zip(completion.prompt_ids, prompt, strict=True) if b != MASK] == [5, 7, 8, 9]
    assert MASK not in completion.prompt_ids + completion.canvas_ids


def first_end(tokens: Sequence[int]) -> int:
    return next((i for i, token in enumerate(tokens) if token in (EOS, EOT)), len(tokens))


def test_the_answer_ends_before_the_first_end_token_and_stops_early() -> None:
    chance = random.Random(1)
    stopped = 0
    for index in range(30):
        prompt = [chance.randrange(500) for _ in range(10)]
        whole = answer(ask(prompt=prompt, engine=Full(), params=change(ignore_eos=True)))
        early = answer(ask(prompt=prompt, engine=Full(), params=change(ignore_eos=False)))
        end = first_end(whole.canvas_ids)
        assert early.token_ids == whole.token_ids == whole.canvas_ids[:end], index
        assert early.finish_reason == ("stop" if end < 24 else "length")
        if end < 16:
            stopped += 1
            assert early.nfe < whole.nfe
            assert early.canvas_ids[-1] == MASK
    assert stopped >= 3


def test_max_tokens_cuts_what_is_shown() -> None:
    completion = answer(ask(params=change(max_tokens=5)))
    assert len(completion.token_ids) == 5
    assert completion.finish_reason == "length"
    assert len(completion.canvas_ids) == 24


def test_should_stop_ends_after_a_block() -> None:
    seen: list[int] = []

    def stop(tokens: Sequence[int]) -> bool:
        seen.append(len(tokens))
        return len(tokens) >= 16

    completion = answer(ask(params=change(logits_eos_inf=True), should_stop=stop, sampler=Fixed()))
    assert seen == [8, 16]
    assert completion.finish_reason == "stop"
    assert len(completion.token_ids) == 16


def test_seeds_reproduce_and_samples_differ() -> None:
    warm = change(temperature=1.0, seed=7, n=3)
    first = [facts(c) for c in decoder().run([ask(params=warm)])]
    again = [facts(c) for c in decoder(max_num_seqs=2).run([ask(params=warm)])]
    other = [facts(c) for c in decoder().run([ask(params=dataclasses.replace(warm, seed=8))])]
    assert sorted(first, key=str) == sorted(again, key=str)
    assert len({fact[5] for fact in first + other}) == 6
    (drawn,) = decoder().run([ask(params=dataclasses.replace(warm, seed=None, n=1))])
    (repeated,) = decoder().run([ask(params=dataclasses.replace(warm, seed=drawn.seed, n=1))])
    assert facts(drawn) == facts(repeated)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask(prompt=[]), "prompt is empty"),
        (ask(prompt=[512]), "prompt token 512 is outside the vocabulary 0..511"),
        (ask(prompt=[1] * 500), "500 tokens and gen_length=24 make 524 positions, but the model has 512"),
        (ask(sampler=Fixed(), params=change(steps=2)), "steps=2 must be at least 3"),
        (ask(prompt=[1] * 480), "needs 504 arena slots, but the arena has 400"),
    ],
)
def test_a_bad_request_is_refused_and_its_neighbours_are_unharmed(request_: Request, message: str) -> None:
    alone = facts(answer(ask(id="good")))
    completions = list(decoder(arena_tokens=400).run([ask(id="good"), request_, ask(id="good")]))
    assert [facts(c) for c in completions if c.error is None] == [alone, alone]
    (refused,) = [c for c in completions if c.error is not None]
    assert message in str(refused.error)
    with pytest.raises(RequestError, match=r"arena|prompt|steps|positions"):
        decoder(arena_tokens=400).check(request_)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gen_length", 0), ("gen_length", 8193), ("steps", 0), ("block_length", 0), ("temperature", -0.1),
        ("temperature", 2.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1),
        ("cfg_scale", -1.0), ("n", 0), ("seed", -1), ("max_tokens", 0), ("max_nfe", 2), ("steps", 1.5), ("n", True),
    ],
)  # fmt: skip
def test_params_out_of_range_name_field_value_and_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value}.*must be"):
        change(**{field: value})


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(RequestError, match=r"steps=0.*temperature=9"):
        change(steps=0, temperature=9)


def test_stop_ends_a_run_after_the_step_in_progress() -> None:
    subject = decoder(max_num_seqs=2)
    completions = list(subject.run([ask(id=str(i)) for i in range(50)], on_step=lambda report: subject.stop()))
    assert completions == []
    assert subject.stats.num_steps == 1
    assert subject.arena.ranges.num_taken == 0
