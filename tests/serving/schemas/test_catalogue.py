"""What clients are told of algorithms and parameters is what the decoder takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dlm.decoding.algorithms import ALGORITHMS, compose
from dlm.decoding.engines import ENGINES
from dlm.decoding.params import MAX_LENGTH
from dlm.errors import RequestError
from dlm.models.architecture import AttentionKind
from dlm.models.families import FAMILIES, Family
from dlm.sampling_params import OPTION_NAMES, SamplingParams
from dlm.serving.engine.defaults import Defaults
from dlm.serving.http.errors import ApiError
from dlm.serving.schemas.catalogue import catalogue
from dlm.serving.schemas.descriptions import OF_ALGORITHMS, OF_REQUESTS

LLADA = next(family for family in FAMILIES if family.name == "llada")


def attention(family: Family) -> AttentionKind:
    return ENGINES[ALGORITHMS[family.default_algorithm].engine]().attention


def told(family: Family = LLADA, **defaults: Any) -> dict[str, Any]:
    return catalogue(family, attention(family), Defaults.of(family, None, "auto", defaults))


def check_range(parameter: dict[str, Any], take: Callable[[Any], object]) -> None:
    """Values at the ends are taken, those next to them refused."""
    step = 1 if parameter["type"] == "integer" else 1e-6
    low, high = parameter["minimum"], parameter["maximum"]
    inside, outside = list(parameter["choices"] or ()), ["nonsense"] if parameter["choices"] else []
    if low is not None:
        is_open = parameter["exclusive_minimum"]
        inside.append(low + step if is_open else low)
        outside.append(low if is_open else low - step)
    if high is not None:
        inside.append(high)
        outside.append(high + step)
    for value in inside:
        take(value)
    for value in outside:
        with pytest.raises((RequestError, ApiError), match=f"^{parameter['name']}="):
            take(value)


@pytest.mark.parametrize("parameter", told()["parameters"], ids=lambda one: one["name"])
def test_ranges_of_every_request_are_those_of_the_decoder(parameter: dict[str, Any]) -> None:
    widest = {"gen_length": MAX_LENGTH, "block_length": MAX_LENGTH, "initial_gen_length": 1}

    def take(value: Any) -> object:
        given = {**widest, parameter["name"]: value}
        return Defaults.of(LLADA, None, "auto", {}).params(given, given.pop("max_tokens", None))

    check_range(parameter, take)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)
def test_ranges_of_algorithms_are_those_of_their_engines_and_samplers(family: Family) -> None:
    for algorithm in told(family)["algorithms"]:
        assert algorithm["available"] == (algorithm["name"] in family.algorithms)
        assert algorithm["available"] == (algorithm["reason"] is None)
        for parameter in algorithm["parameters"] if algorithm["available"] else ():

            def take(value: Any, key: str = parameter["name"], name: str = algorithm["name"]) -> object:
                return compose(name, {key: value}, family=family, attention=attention(family))

            check_range(parameter, take)


def test_everything_is_described_once_and_nothing_that_is_not_there() -> None:
    found = told()
    assert {one["name"] for one in found["parameters"]} == set(OF_REQUESTS)
    names = {one["name"] for algorithm in found["algorithms"] for one in algorithm["parameters"]}
    assert names == set(OF_ALGORITHMS) == {*OPTION_NAMES, "remasking"}
    assert len(found["algorithms"]) == len(ALGORITHMS)
    for algorithm in found["algorithms"]:
        for parameter in (*algorithm["parameters"], *found["parameters"]):
            assert parameter["description"].endswith(".")


def test_ranges_do_not_depend_on_the_server_s_own_canvas() -> None:
    for defaults in ({}, {"gen_length": 512, "block_length": 16}):
        parameters = {one["name"]: one for one in told(**defaults)["parameters"]}
        assert parameters["max_nfe"]["minimum"] == 1
        assert parameters["initial_gen_length"]["maximum"] == parameters["max_tokens"]["maximum"] == MAX_LENGTH
        assert parameters["seed"]["maximum"] == 2**63 - 1
        assert parameters["gen_length"]["default"] == defaults.get("gen_length", SamplingParams.gen_length)
