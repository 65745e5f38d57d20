"""Answers that grow while they are decoded: to what length, where, and with nothing else disturbed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import BlockCausal, DualCache, Engine, Full, PrefixCache, Smooth, Sparse, Vicinity
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import EXPANSION_NAMES, SamplingParams
from dlm.decoding.request import Completion, Progress, Request
from dlm.decoding.samplers import Credit, Dream, FastDLLMDream, Fixed, Klass, Threshold
from dlm.demo.tasks import check, held_out
from dlm.errors import RequestError
from dlm.llm import LLM
from dlm.models.attention import SdpaAttention
from dlm.models.attention.segments import Segment
from dlm.models.backbone import Backbone
from dlm.models.families import SpecialTokens
from dlm.models.sizes import SIZES
from dlm.sampling_params import SamplingParams as FlatParams
from tests.decoding.drawing import draw_prompt, draw_request, facts
from tests.decoding.worlds import BY_NAME, World

PROMPT = (5, 6, 7)
WORD, OTHER = 9, 11
SPECIAL = SpecialTokens(mask_id=3, eos_id=1, eot_id=2)
Rule = Callable[[list[int]], list[tuple[int, float]]]
"""From what stands in a canvas to the token that is expected at each position, and its probability."""


class Scripted(Backbone):
    """A model that says what a rule says. It is shown whole canvases, one at a time."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(replace(SIZES["tiny"], vocab_size=64))
        self.rule = rule
        self.seen: list[list[int]] = []

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention: Any,
        embedded: Tensor | None = None,
        drafts: Tensor | None = None,
    ) -> Tensor:
        self.seen.append(token_ids.tolist())
        hidden = torch.zeros(len(token_ids), self.config.hidden_size)
        hidden[:, :2] = torch.tensor(self.rule(token_ids.tolist()))
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        logits = ((1 - hidden[:, 1:2]) / 63).log().repeat(1, 64)
        return logits.scatter(1, hidden[:, :1].long(), hidden[:, 1:2].log())


def ask(engine: Engine | None = None, watch: Any = None, **params: Any) -> Request:
    given = {"gen_length": 64, "block_length": 8, "temperature": 0.0, "seed": 0, "record": True, **params}
    return Request("a", PROMPT, SamplingParams(**given), engine or Full(), Threshold(0.9), watch=watch)


def decode(rule: Rule, request: Request) -> tuple[Completion, list[list[int]]]:
    model = Scripted(rule)
    (completion,) = Decoder(model, SPECIAL, DecoderOptions(max_num_seqs=1, arena_tokens=128)).run([request])
    assert completion.error is None
    return completion, model.seen


def ending_after(count: int, sure: float = 0.99) -> Rule:
    """An answer of `count` words, then ends, each expected with probability `sure`."""

    def rule(tokens: list[int]) -> list[tuple[int, float]]:
        last = len(PROMPT) + count
        return [(WORD if place < last else SPECIAL.eos_id or 0, sure) for place in range(len(tokens))]

    return rule


@pytest.mark.parametrize(
    ("words", "sure", "lengths", "final"),
    [
        (4, 0.99, [8, 16], 20),  # 4 ends out of 8 expected with 0.99 are a mean of 0.495
        (3, 0.99, [8], 12),
        (20, 0.99, [8, 16, 24, 32], 36),
        (3, 0.4, [8, 16, 24, 32], 40),  # never sure of the end: the ceiling
        (60, 0.99, [8, 16, 24, 32], 40),
    ],
)
def test_the_length_is_found_before_decoding(words: int, sure: float, lengths: list[int], final: int) -> None:
    request = ask(gen_length=40, initial_gen_length=8, eos_check_tokens=8, ignore_eos=True)
    completion, seen = decode(ending_after(words, sure), request)
    probes = [len(tokens) - len(PROMPT) for tokens in seen[: len(lengths)]]
    assert probes == lengths
    assert all(set(tokens[3:]) == {SPECIAL.mask_id} for tokens in seen[: len(lengths)])
    assert len(seen[len(lengths)]) == len(PROMPT) + final
    assert len(completion.canvas_ids) == final
    assert completion.nfe == len(seen)
    assert completion.positions == sum(map(len, seen))
    assert min(step for step in completion.step_map or () if step) == len(lengths) + 1


def test_end_tokens_are_put_behind_a_length_that_was_found() -> None:
    request = ask(initial_gen_length=8, eos_check_tokens=8)
    completion, seen = decode(ending_after(8), request)
    assert seen[2][3:] == [SPECIAL.mask_id] * 16 + [SPECIAL.eos_id] * 4
    assert completion.token_ids == (WORD,) * 8
    assert completion.finish_reason == "stop"
    assert (completion.step_map or ())[16:] == (0,) * 4
    assert np.isnan((completion.logprobs or ())[16:]).all()


def test_a_canvas_that_ends_with_its_length_found_has_stopped() -> None:
    """Every mask becomes a word, and the end tokens behind them are in a block of their own."""

    def rule(tokens: list[int]) -> list[tuple[int, float]]:
        return [(WORD if token == SPECIAL.mask_id and SPECIAL.eos_id in tokens else 1, 0.99) for token in tokens]

    completion, _ = decode(rule, ask(initial_gen_length=8, eos_check_tokens=8))
    assert completion.token_ids == (WORD,) * 8
    assert completion.finish_reason == "stop"


def doubting(tokens: list[int]) -> list[tuple[int, float]]:
    """Sure of everything but the fourth generated position, until the canvas has 22 of them."""
    rows = [(WORD, 0.95 if place % 2 else 0.8) for place in range(len(tokens))]
    if len(tokens) < len(PROMPT) + 22:
        rows[len(PROMPT) + 3] = (OTHER, 0.05)
        rows[len(PROMPT) + 5] = (OTHER, 0.06)
    return rows


def test_a_doubtful_mask_becomes_several_and_what_is_behind_moves_on() -> None:
    told: list[Progress] = []
    request = ask(
        gen_length=40, initial_gen_length=12, eos_confidence_threshold=0.0, eos_check_tokens=1, expansion_factor=4,
        watch=told.append,
    )  # fmt: skip
    completion, seen = decode(doubting, request)
    word, mask = WORD, SPECIAL.mask_id
    assert seen[1] == [*PROMPT, *[mask] * 12]
    # The forward before wrote each second position of the block; the fourth then became four masks.
    assert seen[2] == [*PROMPT, word, mask, word, *[mask] * 4, word, mask, word, *[mask] * 5]
    assert [one.inserted for one in told if one.inserted is not None] == [(3, 3), (3, 3), (3, 3), (3, 3)]
    assert len(completion.canvas_ids) == 24
    assert mask not in completion.canvas_ids


def test_no_mask_is_put_in_once_the_end_is_expected() -> None:
    def rule(tokens: list[int]) -> list[tuple[int, float]]:
        return [*doubting(tokens)[:-1], (1, 0.95)]

    params = {"initial_gen_length": 12, "eos_confidence_threshold": 0.0, "eos_check_tokens": 1}
    assert len(decode(rule, ask(**params))[0].canvas_ids) == 12
    later = decode(rule, ask(**params, expand_eos_confidence_threshold=0.96))[0]
    assert len(later.canvas_ids) > 20


def test_nothing_is_pushed_beyond_the_ceiling() -> None:
    params = {"initial_gen_length": 12, "eos_confidence_threshold": 0.0, "eos_check_tokens": 1, "gen_length": 14}
    completion, seen = decode(doubting, ask(**params))
    assert [len(tokens) - len(PROMPT) for tokens in seen[:3]] == [12, 12, 14]
    assert len(completion.canvas_ids) == 14


@pytest.mark.parametrize("budget", [8, 9, 10, 12, 20])
def test_growth_leaves_forwards_for_every_block(budget: int) -> None:
    request = ask(initial_gen_length=8, eos_check_tokens=8, max_nfe=budget, ignore_eos=True)
    completion, _ = decode(ending_after(60), request)
    assert completion.nfe <= budget
    assert SPECIAL.mask_id not in completion.canvas_ids
    assert len(completion.canvas_ids) == {8: 32, 9: 40, 10: 40, 12: 48, 20: 64}[budget]


# The decoder against the rules written down once more, for one prompt and without a cache


def slow_growth(model: Backbone, special: SpecialTokens, prompt: Sequence[int], params: SamplingParams) -> list[int]:
    """What stands behind the prompt in the end, by the published program's rules, as much as fits being put in."""
    mask, eos, ceiling = special.mask_id, special.eos_id, params.gen_length
    count, stop = params.eos_check_tokens, len(prompt)
    assert params.initial_gen_length is not None
    answer = [mask] * params.initial_gen_length

    def shares() -> Tensor:
        ids = torch.tensor([*prompt, *answer])
        with torch.inference_mode():
            hidden = model(ids, torch.arange(len(ids)), SdpaAttention([Segment(0, len(ids))]))
            shift = 1 if model.config.shifted else 0
            return model.head(hidden).double().softmax(-1)[stop - shift : len(ids) - shift]

    def end(share: Tensor) -> float:
        best, token = share.max(-1)
        return float(best[token == eos][-count:].sum()) / count

    while len(answer) < ceiling:
        if end(shares()) >= params.eos_confidence_threshold:
            answer += [eos or 0] * min(count // 2, ceiling - len(answer))
            break
        answer += [mask] * min(params.expansion_factor, ceiling - len(answer))
    at = 0
    while at < len(answer):
        block = [place for place in range(at, min(at + params.block_length, len(answer))) if answer[place] == mask]
        if not block:
            at += params.block_length
            continue
        share = shares()
        sure = share.amax(-1).tolist()
        written = fill(answer, block, share, mask) or fill(
            answer, block, share.index_fill(1, torch.tensor(mask), 0), mask
        )
        doubtful = [place for place in block if place not in written and sure[place] < params.low_conf_threshold]
        if doubtful and end(share) < params.expand_eos_confidence_threshold:
            worst = min(doubtful, key=lambda place: sure[place])
            answer[worst:worst] = [mask] * min(params.expansion_factor - 1, ceiling - len(answer))
    return answer


def fill(answer: list[int], block: list[int], share: Tensor, mask: int) -> set[int]:
    """Write where a probability is at least 0.9, and where it is highest; never the mask. Returns where."""
    best, token = (share / share.sum(-1, keepdim=True)).max(-1)
    chosen = {place for place in block if best[place] >= 0.9} | {max(block, key=lambda place: float(best[place]))}
    chosen = {place for place in chosen if int(token[place]) != mask}
    for place in chosen:
        answer[place] = int(token[place])
    return chosen


@pytest.mark.parametrize("name", ["golden", "llada", "moe", "dream"])
def test_growth_is_that_of_the_published_rules(name: str) -> None:
    world = BY_NAME[name]
    model = world.checkpoint("float64")
    chance = random.Random(name)
    grown = inserted = 0
    for index in range(10):
        prompt = tuple(
            1 if token == model.special.mask_id else token
            for token in draw_prompt(chance, model.special, model.backbone.config.vocab_size)
        )
        params = SamplingParams(
            gen_length=chance.choice([24, 32, 40]),
            initial_gen_length=chance.choice([4, 8, 16]),
            block_length=chance.choice([5, 8]),
            eos_check_tokens=chance.choice([1, 4, 8]),
            expansion_factor=chance.choice([2, 3, 8]),
            eos_confidence_threshold=chance.choice([0.0, 0.01, 0.5]),
            low_conf_threshold=chance.choice([0.3, 0.6, 0.9]),
            temperature=0.0,
            ignore_eos=True,
        )
        told: list[Progress] = []
        request = Request(str(index), prompt, params, Full(), Threshold(0.9), watch=told.append)
        (completion,) = world.decoder("float64", max_num_seqs=1).run([request])
        assert list(completion.canvas_ids) == slow_growth(model.backbone, model.special, prompt, params)
        puts = [one for one in told if one.inserted is not None]
        grown += any(not one.positions for one in puts)
        inserted += sum(1 for one in puts if one.positions)
    assert grown > 5
    assert inserted > 5


# What it does not disturb

DEFAULTS: dict[str, Any] = {name: getattr(SamplingParams, name) for name in EXPANSION_NAMES}


def test_an_initial_length_at_the_ceiling_changes_nothing() -> None:
    chance, world = random.Random(8), BY_NAME["golden"]
    compared = 0
    while compared < 40:
        request = draw_request(chance, "a", world.checkpoint())
        params = replace(request.params, initial_gen_length=None, **DEFAULTS)
        if not request.engine.grows or isinstance(request.sampler, Fixed) or params.logits_eos_inf:
            continue
        runs = [
            sorted(map(facts, world.decoder(arena_tokens=512).run([replace(request, params=each)])), key=str)
            for each in (params, replace(params, initial_gen_length=params.gen_length))
        ]
        assert runs[0] == runs[1]
        compared += 1


@pytest.mark.parametrize("engine", [Full(), PrefixCache(), DualCache()])
@pytest.mark.parametrize("name", ["golden", "dream"])
def test_cached_engines_refresh_after_growth_and_steps_stay_with_their_tokens(engine: Engine, name: str) -> None:
    """The forward after one that put positions in recomputes the whole canvas; what is told adds up to the step map."""
    world: World = BY_NAME[name]
    params = SamplingParams(
        gen_length=48,
        initial_gen_length=16,
        block_length=8,
        eos_check_tokens=4,
        eos_confidence_threshold=0.0,
        low_conf_threshold=0.9,
        temperature=0.0,
        record=True,
        ignore_eos=True,
    )
    puts = 0
    for index in range(6):
        told: list[Progress] = []
        prompt = (*range(20, 30), index)
        request = Request("a", prompt, params, engine, Threshold(0.9), watch=told.append)
        subject = world.decoder(max_num_seqs=1)
        rows: list[int] = []
        completions = list(subject.run([request], on_step=lambda report, rows=rows: rows.append(report.num_rows)))
        steps = [0] * 16
        for one, computed, following in zip(told, rows, [*rows[1:], None], strict=True):
            for place in one.positions:
                steps[place] = one.step
            if one.inserted is not None:
                assert computed == 11 + len(steps)
                at, count = one.inserted
                steps[at:at] = [0] * count
                puts += bool(one.positions)
                assert following == 11 + len(steps)
        assert list(completions[0].step_map or ()) == steps
    assert puts > 3


def test_samplers_that_remember_positions_go_on_after_growth() -> None:
    """Also after a look at the length that was found at once."""
    for sampler, enough in product((Credit(0.5), Klass(0.3, 1.0, 1)), (0.0, 0.5)):
        request = Request(
            "a", tuple(range(20, 31)),
            SamplingParams(40, initial_gen_length=8, block_length=8, eos_check_tokens=1, low_conf_threshold=0.9,
                           eos_confidence_threshold=enough, temperature=0.7, seed=1, n=3, cfg_scale=0.5),
            Full(), sampler,
        )  # fmt: skip
        mixed = list(BY_NAME["golden"].decoder(max_num_seqs=3).run([request]))
        alone = list(BY_NAME["golden"].decoder(max_num_seqs=1).run([request]))
        assert sorted(map(facts, mixed), key=str) == sorted(map(facts, alone), key=str)
        assert max(len(one.canvas_ids) for one in mixed) > 8


# Refusals


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"initial_gen_length": 65}, r"initial_gen_length=65 .* 1\.\.64 \(gen_length is the ceiling\)"),
        ({"initial_gen_length": 0}, "initial_gen_length=0"),
        ({"initial_gen_length": 8, "expansion_factor": 1}, r"expansion_factor=1 must be .* 2\.\.8192"),
        ({"initial_gen_length": 8, "low_conf_threshold": 1.5}, "low_conf_threshold=1.5"),
        ({"initial_gen_length": 8, "logits_eos_inf": True}, "logits_eos_inf=True bans the end token"),
        ({"expansion_factor": 4, "eos_check_tokens": 8}, "expansion_factor, eos_check_tokens: used only with"),
    ],
)
def test_wrong_parameters_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(gen_length=64, **params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": Vicinity()}, "engine vicinity keeps state by canvas position; use full, prefix_cache or dual"),
        ({"engine": Smooth()}, "engine smooth keeps state by"),
        ({"engine": Sparse()}, "engine sparse keeps state by"),
        ({"sampler": Fixed()}, "sampler fixed schedules a fixed number of masks"),
        ({"sampler": Dream()}, "sampler dream schedules a fixed"),
        ({"sampler": FastDLLMDream()}, "sampler fastdllm_dream schedules a fixed"),
    ],
)
def test_what_cannot_grow_is_refused(changes: dict[str, Any], message: str) -> None:
    request = replace(ask(initial_gen_length=8, steps=64), **changes)
    with pytest.raises(RequestError, match=message):
        BY_NAME["golden"].decoder().check(request)


def test_models_with_blocks_and_models_without_an_end_token_are_refused() -> None:
    with pytest.raises(RequestError, match="engine block_causal opens blocks on demand"):
        BY_NAME["llada2"].decoder().check(replace(ask(initial_gen_length=8), engine=BlockCausal()))
    with pytest.raises(RequestError, match="needs an end-of-sequence token, but the model defines none"):
        Decoder(Scripted(doubting), SpecialTokens(3, None)).check(ask(initial_gen_length=8))


def test_the_ceiling_is_what_must_fit() -> None:
    with pytest.raises(RequestError, match="needs 67 arena slots, but the arena has 60"):
        BY_NAME["golden"].decoder(arena_tokens=60).check(ask(DualCache(), initial_gen_length=8))
    with pytest.raises(RequestError, match="make 603 positions, but the model has 512"):
        BY_NAME["golden"].decoder().check(ask(gen_length=600, initial_gen_length=8))


def test_the_demo_answers_right_with_fewer_positions_than_at_the_ceiling() -> None:
    examples = held_out(per_family=4)
    whole = FlatParams(gen_length=128, block_length=16, temperature=0.0, algorithm="dual_cache", threshold=0.9)
    growing = replace(whole, initial_gen_length=16, eos_check_tokens=8)
    figures = []
    with LLM("demo") as llm:
        for params in (whole, growing):
            before = llm._decoder.stats.num_rows if llm._decoder else 0
            outs = llm.generate([example.question for example in examples], params, use_tqdm=False)
            right = sum(check(one.family, one.question, out["text"]) for one, out in zip(examples, outs, strict=True))
            figures.append((right, (llm._decoder.stats.num_rows if llm._decoder else 0) - before))
    print(f"of {len(examples)}: {figures[0][0]} right in {figures[0][1]} positions at the ceiling of 128, "
          f"{figures[1][0]} in {figures[1][1]} growing from 16")  # fmt: skip
    assert figures[1][0] == len(examples)
    assert figures[1][1] < 0.7 * figures[0][1]
