"""The catalogue of algorithms and their parameters for clients.

Ranges are parsed from the errors that engines and samplers raise for an invalid value, so that each range is written in
one place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, get_type_hints

from dlm.decoding.algorithms import ALGORITHMS
from dlm.decoding.engines import ENGINES, Smooth, Vicinity
from dlm.decoding.params import MAX_LENGTH, PARAM_NAMES
from dlm.decoding.params import SamplingParams as DecoderParams
from dlm.decoding.samplers import SAMPLERS
from dlm.errors import RequestError
from dlm.models.architecture import AttentionKind
from dlm.models.families import Family
from dlm.sampling_params import SamplingParams
from dlm.serving.engine.defaults import Defaults
from dlm.serving.schemas.descriptions import OF_ALGORITHMS, OF_REQUESTS

NUMBER = r"(-?[\d.]+(?:e-?\d+)?)"
FLEXIBLE = ("fixed", "threshold", "factor")
"""Samplers of algorithms whose sampler depends on the request."""
KINDS = {int: "integer", float: "number", str: "string", bool: "boolean"}
HIDDEN = ("record", "n")
"""Request parameters not listed: clients do not set them, or OpenAI documents them."""
WIDEST = {"gen_length": MAX_LENGTH, "block_length": MAX_LENGTH}
"""Canvas for which canvas-dependent ranges are widest: any value in them is valid for some request."""


def catalogue(family: Family, attention: AttentionKind, defaults: Defaults) -> dict[str, Any]:
    """All algorithms (with the reason if the model cannot run one), and the parameters of every request."""
    return {
        "default": defaults.algorithm,
        "algorithms": [_algorithm(name, family, attention, defaults) for name in ALGORITHMS],
        "parameters": [_of_request(name, defaults) for name in PARAM_NAMES if name not in HIDDEN],
    }


def _algorithm(name: str, family: Family, attention: AttentionKind, defaults: Defaults) -> dict[str, Any]:
    algorithm = ALGORITHMS[name]
    available = name in family.algorithms
    engine = algorithm.engine_for(attention) if available else algorithm.engine
    samplers = FLEXIBLE if algorithm.flexible else (algorithm.sampler,)
    parts = [("engine", ENGINES[engine]), *(("sampler", SAMPLERS[sampler]) for sampler in samplers)]
    if engine == Smooth.name:
        parts.append(("engine", Vicinity))
    parameters = {}
    for of, part in parts:
        for one in fields(part):  # type: ignore[arg-type]  # the protocols do not say that parts are dataclasses
            if one.name != "base" and one.name not in parameters:
                told = _described(part, one.name, one.default, OF_ALGORITHMS[one.name])
                parameters[one.name] = {**told, "of": of}
    if name == defaults.algorithm:
        for key, parameter in parameters.items():
            parameter["default"] = defaults.values.get(key, parameter["default"])
    return {
        "name": name,
        "aliases": list(algorithm.aliases),
        "engine": engine,
        "sampler": algorithm.sampler,
        "source": algorithm.source,
        "available": available,
        "reason": None if available else f"models of the family {family.name} cannot run it",
        "parameters": list(parameters.values()),
    }


def _of_request(name: str, defaults: Defaults) -> dict[str, Any]:
    default = next(one.default for one in fields(SamplingParams) if one.name == name)
    described = _described(DecoderParams, name, defaults.values.get(name, default), OF_REQUESTS[name], WIDEST)
    if name == "block_length":
        described["default"] = defaults.values.get(name, defaults.block_length)
    if name == "max_tokens":
        described["maximum"] = MAX_LENGTH
    return {**described, "of": "request"}


def _described(
    part: type[Any], name: str, default: Any, description: str, others: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Description, type, default and range of a parameter; `others` are passed to `part` along with it."""
    hint = get_type_hints(part)[name]
    kinds = [kind for kind in getattr(hint, "__args__", (hint,)) if kind is not type(None)]
    text = "" if kinds[0] is bool else _refusal(part, {**others, name: math.nan}, name)
    below = re.search(rf"(at least|above) {NUMBER}", text)
    above = re.search(rf"at most {NUMBER}", text)
    span = re.search(rf"{NUMBER}\.\.{NUMBER}", text)
    choices = re.search(r"one of (.+)$", text)
    whole = kinds[0] is int
    return {
        "name": name,
        "description": description,
        "type": KINDS[kinds[0]],
        "default": default,
        "minimum": _number(span[1] if span else below[2] if below else None, whole),
        "exclusive_minimum": bool(below and below[1] == "above"),
        "maximum": _number(span[2] if span else above[1] if above else None, whole),
        "choices": choices[1].split(", ") if choices else None,
    }


def _refusal(part: type[Any], values: Mapping[str, Any], name: str) -> str:
    """The error of `part` for the value of `name`, which is outside any range."""
    try:
        part(**values)
    except RequestError as error:
        return next((text for text in str(error).split("; ") if text.startswith(f"{name}=")), "")
    return ""


def _number(text: str | None, whole: bool) -> int | float | None:
    if text is None:
        return None
    return int(text) if whole else float(text)
