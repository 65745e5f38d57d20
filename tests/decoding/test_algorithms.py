"""From a name and parameters to engine and sampler: aliases, families, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dlm.decoding import engines, samplers
from dlm.decoding.algorithms import ALGORITHMS, canonical, compose, resolve
from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.errors import RequestError
from dlm.models.families import DREAM, FAMILIES, LLADA, LLADA2, LLADA_MOE, NEMOTRON, SDAR, Family
from tests.decoding.worlds import WORLDS

ATTENTION: dict[str, Any] = {"llada2": "block_causal", "sdar": "block_causal", "nemotron": "causal_context"}


def parts(name: str | None, family: Family = LLADA, **options: Any) -> tuple[Any, Any]:
    return compose(name, options, family=family, attention=ATTENTION.get(family.name, "bidirectional"))


def test_every_name_and_alias_is_one_algorithms_alone() -> None:
    names = [name for key, algorithm in ALGORITHMS.items() for name in (key, *algorithm.aliases)]
    assert len(names) == len(set(names))
    assert "auto" not in names
    for key, algorithm in ALGORITHMS.items():
        assert [canonical(name) for name in (key, *algorithm.aliases)] == [key] * (1 + len(algorithm.aliases))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("no_cache", "basic"), ("simple", "basic"), ("prefix", "prefix_cache"), ("cache", "prefix_cache"),
        ("dual", "dual_cache"), ("double_cache", "dual_cache"), ("dinfer", "dinfer_blockwise"),
        ("blockwise", "dinfer_blockwise"), ("hierarchy", "dinfer_hierarchy"), ("credit", "dinfer_credit"),
    ],
)  # fmt: skip
def test_the_published_aliases(alias: str, name: str) -> None:
    assert resolve(alias, LLADA) == name
    assert parts(alias) == parts(name)


@pytest.mark.parametrize("name", [None, "auto"])
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (LLADA, "dinfer_blockwise"), (LLADA_MOE, "dinfer_blockwise"), (LLADA2, "llada2"), (DREAM, "dream"),
        (SDAR, "sdar"), (NEMOTRON, "nemotron"),
    ],
)  # fmt: skip
def test_auto_is_the_familys_own(family: Family, expected: str, name: str | None) -> None:
    assert resolve(name, family) == expected
    assert parts(name, family) == parts(expected, family)


@pytest.mark.parametrize(
    ("name", "family", "engine", "sampler"),
    [
        ("basic", LLADA, engines.Full(), samplers.Fixed()),
        ("basic", DREAM, engines.Full(), samplers.Fixed()),
        ("dinfer_soft", LLADA, engines.Smooth(), samplers.DInferThreshold()),
        ("sparse", LLADA_MOE, engines.Sparse(), samplers.Fixed()),
        ("entropy_bound", SDAR, engines.BlockCausal(), samplers.EntropyBound()),
        ("ar", LLADA2, engines.BlockCausal(), samplers.Leftmost()),
        ("ar", NEMOTRON, engines.Autoregressive(), samplers.Leftmost()),
        ("nemotron", NEMOTRON, engines.CausalCommit(), samplers.Threshold()),
        ("klass", LLADA2, engines.BlockCausal(), samplers.Klass()),
        ("llada21", LLADA2, engines.BlockCausal(), samplers.LLaDA21Edit()),
        ("linear_spec", NEMOTRON, engines.LinearSpec(), samplers.LinearSpec()),
        ("fastdllm_dream", DREAM, engines.Full(), samplers.FastDLLMDream()),
    ],
)
def test_engine_and_sampler(name: str, family: Family, engine: Any, sampler: Any) -> None:
    assert parts(name, family) == (engine, sampler)


@pytest.mark.parametrize("name", ["basic", "prefix_cache", "dual_cache", "sparse"])
def test_the_sampler_follows_the_request(name: str) -> None:
    assert parts(name)[1] == samplers.Fixed()
    assert parts(name, remasking="random")[1] == samplers.Fixed("random")
    assert parts(name, threshold=0.7)[1] == samplers.Threshold(0.7)
    assert parts(name, factor=0.7)[1] == samplers.Factor(0.7)
    assert parts(name, factor=None, threshold=0.7)[1] == samplers.Threshold(0.7)
    with pytest.raises(RequestError, match="factor and threshold are both set"):
        parts(name, factor=1.0, threshold=0.9)


def test_parameters_go_to_the_engine_or_the_sampler_that_has_them() -> None:
    assert parts("dinfer_vicinity", prefix_look=3, threshold=0.6) == (
        engines.Vicinity(prefix_look=3),
        samplers.DInferThreshold(0.6),
    )
    soft, _ = parts("dinfer_soft", prefix_look=3, cont_weight=0.2, maximum_unroll=2)
    assert soft == engines.Smooth(engines.Vicinity(prefix_look=3), cont_weight=0.2, maximum_unroll=2)


@pytest.mark.parametrize(
    ("name", "family", "options", "said"),
    [
        ("dual_cash", LLADA, {}, ["'dual_cash' is unknown", "auto", *ALGORITHMS]),
        ("llada2", LLADA, {}, ["algorithm='llada2' cannot run on a llada model", *LLADA.algorithms]),
        ("dual", SDAR, {}, ["algorithm='dual_cache' cannot run on a sdar model", *SDAR.algorithms]),
        ("sparse", DREAM, {}, ["cannot run on a dream model", *DREAM.algorithms]),
        ("basic", LLADA, {"gamma": 1}, ["gamma is not a parameter of algorithm='basic'", "remasking"]),
        ("basic", LLADA, {"threshold": 0.5, "remasking": "random"}, ["remasking is not a parameter", "threshold"]),
        ("dinfer_soft", LLADA, {"base": engines.Full()}, ["base is not a parameter", "cont_weight", "prefix_look"]),
        ("ar", LLADA, {"threshold": 0.5, "gamma": 1}, ["gamma, threshold is not a parameter", "are none"]),
        ("auto", LLADA, {"threshold": 1.5}, ["threshold=1.5 must be a finite number, at least 0.0 and at most 1.0"]),
    ],
)
def test_a_refusal_says_what_can_be_done(name: str, family: Family, options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(RequestError) as raised:
        parts(name, family, **options)
    for part in said:
        assert part in str(raised.value)


@pytest.mark.parametrize("world", [world for world in WORLDS if world.name != "odd"], ids=lambda world: world.name)
def test_a_family_runs_all_that_it_lists(world: Any) -> None:
    """Every algorithm of a family composes to parts that its models take, and answers."""
    model = world.checkpoint()
    params = SamplingParams(gen_length=8, block_length=4, steps=8, temperature=0.0, seed=1, ignore_eos=True)
    decoder = Decoder(model.backbone, model.special, DecoderOptions(arena_tokens=600, poison=True))
    requests = []
    for name in model.family.algorithms:
        engine, sampler = compose(name, {}, family=model.family, attention=model.backbone.config.attention)
        requests.append(Request(name, (5, 6, 7), params, engine, sampler))
    done = {completion.request_id: completion for completion in decoder.run(requests)}
    assert {name: one.error for name, one in done.items()} == dict.fromkeys(model.family.algorithms)
    assert all(model.special.mask_id not in one.canvas_ids for one in done.values())


def test_every_algorithm_is_some_familys() -> None:
    assert {name for family in FAMILIES for name in family.algorithms} == ALGORITHMS.keys()


@pytest.mark.parametrize("engine", [engines.BlockCausal(), engines.CausalCommit(), engines.Sparse(), engines.Full()])
def test_an_engine_for_other_models_is_refused_by_the_decoder(engine: Any) -> None:
    params = SamplingParams(gen_length=8, block_length=4, steps=8)
    for world in WORLDS:
        config = world.checkpoint().backbone.config
        fits = engine.attention == config.attention and (engine.takes_shifted or not config.shifted)
        subject = world.decoder(arena_tokens=100)
        request = Request("a", (1, 2), params, engine, samplers.Threshold())
        if fits:
            subject.check(request)
        else:
            with pytest.raises(RequestError, match=f"engine {engine.name} does not support a model with"):
                subject.check(request)


@pytest.mark.parametrize(
    ("engine", "sampler", "params", "said"),
    [
        (engines.Smooth(), samplers.Threshold(), {"cfg_scale": 1.0}, "cfg_scale=1.0 is not defined with the smoothed"),
        (engines.Smooth(), samplers.Klass(), {}, "sampler klass is not defined with the smoothed inputs"),
        (engines.Full(), samplers.LinearSpec(), {}, "engine full cannot run with sampler linear_spec"),
        (engines.Full(), samplers.FastDLLMDream(), {"steps": 3}, "steps=3 must divide gen_length=8"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(engine: Any, sampler: Any, params: Any, said: str) -> None:
    asked = dataclasses.replace(SamplingParams(gen_length=8, block_length=4, steps=8), **params)
    with pytest.raises(RequestError, match=said):
        WORLDS[0].decoder(arena_tokens=100).check(Request("a", (1, 2), asked, engine, sampler))


@pytest.mark.parametrize(("name", "least"), [("dream", 4), ("nemotron", 4), ("sdar", 3), ("llada", 2)])
def test_max_nfe_counts_the_forwards_that_seed_blocks(name: str, least: int) -> None:
    """Two blocks of 4 behind a prompt of 3; sdar's blocks count from 0 and are three."""
    world = next(world for world in WORLDS if world.name == name)
    by_attention = {"causal_context": engines.CausalCommit(), "block_causal": engines.BlockCausal()}
    engine = by_attention.get(world.checkpoint().backbone.config.attention, engines.DualCache())
    params = SamplingParams(gen_length=8, block_length=4, temperature=0.0, ignore_eos=True, max_nfe=least)
    request = Request("a", (1, 2, 3), params, engine, samplers.Threshold(1.0))
    (completion,) = world.decoder(arena_tokens=100).run([request])
    assert completion.error is None
    assert completion.nfe <= least
    assert world.checkpoint().special.mask_id not in completion.canvas_ids
    if least > 2:
        fewer = dataclasses.replace(request, params=dataclasses.replace(params, max_nfe=least - 1))
        with pytest.raises(RequestError, match=f"max_nfe={least - 1} must be at least {least} with this engine"):
            world.decoder(arena_tokens=100).check(fewer)


def test_stopping_inside_a_block_goes_against_running_on() -> None:
    with pytest.raises(RequestError, match="eos_early_stop=True conflicts with ignore_eos=True"):
        SamplingParams(eos_early_stop=True, ignore_eos=True)


def test_linear_spec_refuses_what_is_given_behind_a_mask() -> None:
    """Its passes go from one undecided position to the next and know no given tokens between them."""
    world = next(world for world in WORLDS if world.name == "nemotron")
    prompt = (1, 2, world.checkpoint().special.mask_id, 4, 5)
    params = SamplingParams(gen_length=8, block_length=4)
    request = Request("a", prompt, params, engines.LinearSpec(), samplers.LinearSpec())
    with pytest.raises(RequestError, match="linear_spec"):
        world.decoder(arena_tokens=100).check(request)
