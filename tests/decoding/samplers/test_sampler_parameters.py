"""What samplers refuse: parameters out of range, and schedules that cannot be kept."""

from __future__ import annotations

from typing import Any

import pytest

from dlm.decoding.params import SamplingParams
from dlm.decoding.samplers import (
    Credit,
    DInferThreshold,
    Dream,
    EntropyBound,
    Factor,
    FastDLLMDream,
    Fixed,
    Hierarchy,
    Klass,
    LLaDA2,
    LLaDA21Edit,
    Sampler,
    Sdar,
    Threshold,
)
from dlm.errors import RequestError


@pytest.mark.parametrize(
    ("sampler", "params", "said"),
    [
        (Fixed(), {"steps": 2}, "steps=2 must be at least 3"),
        (Dream(), {"steps": 2}, "steps=2 must be at least 3"),
        (FastDLLMDream(), {"steps": 5}, "steps=5 must divide gen_length=24"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused(sampler: Sampler, params: dict[str, int], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        sampler.check(SamplingParams(**{"gen_length": 24, "block_length": 8, **params}), 3)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (Fixed, {"remasking": "best"}, "remasking='best' must be one of low_confidence, random"),
        (Threshold, {"threshold": 1.1}, "threshold=1.1"),
        (Factor, {"factor": -1}, "factor=-1"),
        (DInferThreshold, {"threshold": None}, "threshold=None"),
        (Hierarchy, {"low_threshold": 2}, "low_threshold=2"),
        (Credit, {"decay_beta": 1.5}, "decay_beta=1.5"),
        (Credit, {"credit_alpha": float("inf")}, "credit_alpha=inf"),
        (EntropyBound, {"gamma": -0.1}, "gamma=-0.1"),
        (Klass, {"history": 0}, "history=0"),
        (Klass, {"kl_threshold": -1}, "kl_threshold=-1"),
        (LLaDA2, {"steps_per_block": 0}, "steps_per_block=0"),
        (LLaDA2, {"minimal_topk": 0}, "minimal_topk=0"),
        (LLaDA21Edit, {"max_post_steps": 0}, "max_post_steps=0"),
        (LLaDA21Edit, {"num_to_transfer": True}, "num_to_transfer=True"),
        (Sdar, {"remasking_strategy": "best"}, "remasking_strategy='best' must be one of"),
        (Sdar, {"steps_per_block": 0}, "steps_per_block=0"),
        (Dream, {"alg": "best"}, "alg='best' must be one of origin"),
        (Dream, {"alg": "origin", "alg_temp": 0.5}, "alg_temp=0.5 has no meaning with alg=origin"),
        (Dream, {"eps": 0.0}, "eps=0.0"),
        (FastDLLMDream, {"threshold": -0.1}, "threshold=-0.1"),
    ],
)
def test_a_wrong_parameter_is_named(kind: type[Any], values: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as raised:
        kind(**values)
    assert said in str(raised.value)
