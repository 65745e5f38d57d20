"""The parameters of a request: every field of every engine and sampler is there, and every wrong value is named."""

from __future__ import annotations

import pickle
from copy import deepcopy
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest

from dlm import SamplingParams, SparseConfig
from dlm.decoding import engines, samplers
from dlm.errors import RequestError
from dlm.models.families import LLADA, LLADA2, SDAR
from dlm.sampling_params import OPTION_NAMES, Unnamed, option_owners


def parts(params: SamplingParams, sparse: SparseConfig | None = None) -> tuple[Any, Any]:
    return params.translate(LLADA, "bidirectional", None, sparse)[1:]


def test_the_defaults_are_the_contract() -> None:
    params = SamplingParams()
    assert (params.gen_length, params.steps, params.block_length, params.temperature) == (128, 128, 32, 1.0)
    assert (params.top_p, params.top_k, params.cfg_scale, params.remasking) == (1.0, 0, 0.0, "low_confidence")
    assert (params.max_tokens, params.algorithm, params.max_nfe, params.seed) == (None, None, None, None)
    assert (params.ignore_eos, params.stop, params.n) == (False, (), 1)
    assert SparseConfig() == SparseConfig(True, 0.5, 1, 32, True)


def test_there_is_a_field_for_every_parameter_of_an_engine_or_sampler() -> None:
    assert {*OPTION_NAMES, "remasking"} == option_owners().keys()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gen_length": 10000}, "gen_length=10000 must be a whole number, 1..8192"),
        ({"gen_length": 0}, "gen_length=0"),
        ({"gen_length": 12.5}, "gen_length=12.5"),
        ({"steps": 8193}, "steps=8193 must be a whole number, 1..8192"),
        ({"block_length": 0}, "block_length=0"),
        ({"temperature": 2.5}, "temperature=2.5 must be a finite number, at least 0.0 and at most 2.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 10**400}, "temperature=an integer of 1329 bits"),
        ({"cfg_scale": 10**400}, "must be a finite number, at least 0.0"),
        ({"cfg_scale": -(10**400)}, "cfg_scale=an integer of 1329 bits"),
        ({"cfg_scale": 10**5000}, "cfg_scale=an integer of 16610 bits must be a finite number"),
        ({"threshold": 10**400}, "must be a finite number"),
        ({"seed": 10**5000}, "seed=an integer of 16610 bits must be a whole number"),
        ({"top_p": 0.0}, "top_p=0.0 must be a finite number, above 0.0"),
        ({"cfg_scale": -1}, "cfg_scale=-1"),
        ({"max_nfe": 3}, "max_nfe=3 must be a whole number, at least 4"),
        ({"remasking": "best"}, "remasking='best' must be one of low_confidence, random, entropy, margin"),
        ({"algorithm": "dual_cash"}, "algorithm='dual_cash' is unknown; known: auto, basic"),
        ({"algorithm": 3}, "algorithm=3 must be the name of an algorithm"),
        ({"threshold": 1.5}, "threshold=1.5 must be a finite number, at least 0.0 and at most 1.0"),
        ({"threshold": "high"}, "threshold='high'"),
        ({"factor": -0.5}, "factor=-0.5"),
        ({"low_threshold": 2}, "low_threshold=2"),
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"alg": "best"}, "alg='best' must be one of"),
        ({"prefix_look": -1}, "prefix_look=-1"),
        ({"stop": ["a", ""]}, "stop=('a', '') must be a string or a list of strings, none of them empty"),
        ({"stop": 3}, "stop=3"),
        ({"threshold": 0.5, "factor": 1.0}, "threshold=0.5 and factor=1.0"),
    ],
)
def test_a_wrong_value_is_a_value_error_that_names_it(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  # the message is compared below
        SamplingParams(**values)
    assert said in str(raised.value)


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(RequestError, match=r"gen_length=0.*temperature=3.*threshold=2"):
        SamplingParams(gen_length=0, temperature=3, threshold=2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"retention_ratio": 1.5}, "retention_ratio=1.5"),
        ({"delay_step": -1}, "delay_step=-1"),
        ({"default_block_len": 0}, "default_block_len=0 must be a whole number, 1..8192"),
        ({"enabled": 1}, "enabled=1 must be True or False"),
        ({"head_select": None}, "head_select=None"),
    ],
)
def test_a_wrong_sparse_value_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        SparseConfig(**values)


def test_the_values_are_frozen_and_can_be_copied() -> None:
    params = SamplingParams(stop=["x"], gen_length=16)
    with pytest.raises(FrozenInstanceError):
        params.steps = 3  # type: ignore[misc]  # that is the test
    for copy in (replace(params, steps=64), deepcopy(params), pickle.loads(pickle.dumps(params))):
        assert isinstance(copy.block_length, Unnamed)
        assert copy.stop == ("x",)
    assert hash(params) == hash(SamplingParams(stop=["x"], gen_length=16))
    assert SamplingParams(**asdict(params)) == params


@pytest.mark.parametrize(
    ("values", "engine", "sampler"),
    [
        ({}, engines.DualCache(), samplers.DInferThreshold()),
        ({"algorithm": "auto", "threshold": 0.5}, engines.DualCache(), samplers.DInferThreshold(0.5)),
        ({"algorithm": "basic"}, engines.Full(), samplers.Fixed()),
        ({"algorithm": "no_cache", "remasking": "random"}, engines.Full(), samplers.Fixed("random")),
        ({"algorithm": "prefix", "threshold": 0.8}, engines.PrefixCache(), samplers.Threshold(0.8)),
        ({"algorithm": "dual", "factor": 0.5}, engines.DualCache(), samplers.Factor(0.5)),
        ({"algorithm": "hierarchy", "low_threshold": 0.2}, engines.DualCache(), samplers.Hierarchy(0.9, 0.2)),
        (
            {"algorithm": "hierarchy", "threshold": 1.0, "low_threshold": 0.0},  # what dInfer's program calls None
            engines.DualCache(),
            samplers.Hierarchy(1.0, 0.0),
        ),
        ({"algorithm": "dinfer_vicinity", "prefix_look": 4}, engines.Vicinity(4), samplers.DInferThreshold()),
        ({"algorithm": "sparse", "retention_ratio": 0.3}, engines.Sparse(0.3), samplers.Fixed()),
        ({"algorithm": "klass", "history": 3}, engines.DualCache(), samplers.Klass(history=3)),
    ],
)
def test_names_and_parameters_become_engine_and_sampler(values: dict[str, Any], engine: Any, sampler: Any) -> None:
    assert parts(SamplingParams(**values)) == (engine, sampler)


def test_a_parameter_of_another_algorithm_is_refused() -> None:
    with pytest.raises(RequestError, match=r"remasking is not a parameter of algorithm='dinfer_blockwise'"):
        parts(SamplingParams(remasking="random"))
    with pytest.raises(RequestError, match="remasking"):
        parts(SamplingParams(algorithm="basic", threshold=0.9, remasking="margin"))


def test_the_block_length_is_the_one_named_else_the_models_else_the_sparse_configs() -> None:
    def length(params: SamplingParams, own: int | None, sparse: SparseConfig | None = None) -> int:
        family, attention = (LLADA, "bidirectional") if own is None else (SDAR, "block_causal")
        return params.translate(family, attention, own, sparse)[0].block_length  # type: ignore[arg-type]  # one of the kinds

    assert length(SamplingParams(), None) == 32
    assert length(SamplingParams(), 4) == 4
    assert length(SamplingParams(block_length=32), 4) == 32
    assert length(SamplingParams(), None, SparseConfig(default_block_len=16)) == 16
    assert length(SamplingParams(), None, SparseConfig(enabled=False, default_block_len=16)) == 32
    assert length(SamplingParams(block_length=32), None, SparseConfig(default_block_len=16)) == 32


def test_auto_is_the_familys_own() -> None:
    _, engine, sampler = SamplingParams().translate(LLADA2, "block_causal", 32)
    assert (engine, sampler) == (engines.BlockCausal(), samplers.LLaDA2())
