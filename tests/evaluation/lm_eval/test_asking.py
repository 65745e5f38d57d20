"""What model arguments and tasks' `generation_kwargs` turn into."""

from __future__ import annotations

from typing import Any

import pytest

from dlm.decoding.decoder import Decoder
from dlm.decoding.request import Request
from dlm.errors import RequestError
from dlm.evaluation.lm_eval.asking import Settings, greedy_values
from dlm.likelihood import Ar, LladaMC
from dlm.sampling_params import SamplingParams
from tests.decoding.worlds import BY_NAME
from tests.likelihood.models import FAMILIES

LLADA = {"gen_length": 64, "block_length": 32, "steps": 64, "algorithm": "basic"}


def test_arguments_are_split_by_whom_they_are_for() -> None:
    given = {"scheme": "ar", "seed": 3, "threshold": 0.9, "dtype": "float32", "max_num_seqs": 4, **LLADA}
    settings, rest = Settings.split(given)
    assert settings == Settings("ar", None, 3, sampling={"threshold": 0.9, **LLADA})
    assert rest == {"dtype": "float32", "max_num_seqs": 4}
    assert settings.estimator() == Ar()


def test_the_bound_has_128_draws_unless_told_otherwise() -> None:
    assert Settings().estimator() == LladaMC(128)
    assert Settings(mc_num=7).estimator() == LladaMC(7)


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({}, {"temperature": 0.0, "gen_length": 256, "stop": []}),
        ({"until": "Q:", "max_gen_toks": 30}, {"gen_length": 30, "max_tokens": 30, "stop": ["Q:"]}),
        ({"until": ["", "Q:"], "max_new_tokens": 30}, {"gen_length": 30, "max_tokens": 30, "stop": ["Q:"]}),
        ({"max_tokens": 5, "max_gen_toks": 30}, {"gen_length": 30, "max_tokens": 30}),
        ({"max_gen_toks": 30, "gen_length": 96}, {"gen_length": 96, "max_tokens": 30}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 0.7, "do_sample": True}, {"temperature": 0.7}),
        ({"temperature": 0.7, "do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 0.0}),
        ({"num_beams": 1, "top_p": 0.9}, {"top_p": 0.9}),
    ],
)
def test_a_task_s_wishes(kwargs: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = Settings().generation(kwargs)
    assert {name: found[name] for name in wanted} == wanted
    assert set(found) - set(wanted) <= {"temperature", "gen_length", "stop", "max_tokens"}
    assert ("max_tokens" in found) == any("max" in name for name in kwargs)


def test_a_task_goes_before_the_model_arguments() -> None:
    settings = Settings(sampling={"temperature": 0.5, **LLADA})
    assert settings.generation({})["temperature"] == 0.5
    assert settings.generation({"temperature": 0.1, "steps": 16}) == {
        **LLADA, "temperature": 0.1, "steps": 16, "stop": [],
    }  # fmt: skip
    canvas = settings.generation({"max_gen_toks": 20})
    assert (canvas["gen_length"], canvas["max_tokens"]) == (64, 20)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"num_beams": 10}, "num_beams=10 cannot be honoured"),
        ({"repetition_penalty": 1.3, "min_p": 0.1}, "repetition_penalty=1.3, min_p=0.1 cannot be honoured"),
        ({"temperature": 3.0}, "temperature=3.0"),
        ({"max_gen_toks": 32768}, "gen_length=32768"),
        ({"algorithm": "best"}, "algorithm='best' is unknown"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Settings().generation(kwargs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"scheme": "mc"}, "scheme='mc' is unknown; known: llada_mc"),
        ({"scheme": "ar", "mc_num": 4}, "mc_num=4 goes with scheme=llada_mc alone"),
        ({"mc_num": 0}, "mc_num=0"),
        ({"seed": -1}, "seed=-1"),
        ({"check_greedy": "no"}, "check_greedy='no' must be True or False"),
        ({"gen_length": 0}, "gen_length=0"),
    ],
)
def test_wrong_arguments_are_refused_at_the_start(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Settings.split(arguments)


def test_greedy_decoding_is_one_token_a_forward() -> None:
    one_block = greedy_values(5, ("klass", "basic"))
    assert one_block == {"gen_length": 5, "temperature": 0.0, "algorithm": "basic", "block_length": 5, "steps": 5}
    assert greedy_values(5, ("llada2", "ar")) == {"gen_length": 5, "temperature": 0.0, "algorithm": "ar"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_decoded_greedily(family: str) -> None:
    model = BY_NAME[family].checkpoint()
    config = model.backbone.config
    params = SamplingParams(**greedy_values(5, model.family.algorithms), ignore_eos=True, record=True)
    request = Request("greedy", (1, 2, 3), *params.translate(model.family, config.attention, config.block_length))
    [completion] = Decoder(model.backbone, model.special).run([request])
    assert completion.error is None
    assert completion.step_map is not None
    assert len(set(completion.step_map)) == len(completion.step_map) >= len(completion.token_ids) == 5
    assert completion.nfe >= 5
