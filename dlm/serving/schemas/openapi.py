"""The OpenAPI document: FastAPI's own, plus what FastAPI cannot infer: errors, ranges, served names.

Routes pass `responses=responses(Shape, 404, ...)`; `document` adds the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from dlm.decoding.algorithms import ALGORITHMS
from dlm.sampling_params import AUTO
from dlm.serving.engine.defaults import MOST_SAMPLES
from dlm.serving.schemas.responses import ErrorBody

REASONS = {
    400: "The request is invalid; the message says what is wrong and what to do.",
    401: "The key is missing or wrong.",
    403: "The server has no key and only accepts host names of its own machine.",
    404: "There is no such model or result.",
    408: "The body was not received in time.",
    409: "The weights cannot be changed now; the message says why and what to do.",
    413: "The body is too large.",
    429: "The queue is full; retry after the seconds in Retry-After.",
    500: "The request failed; see the server's log.",
    503: "The server is shutting down, the request was aborted or did not fit into memory, or there are no weights.",
    504: "There was no answer in time.",
}
"""Descriptions of the error statuses."""
OF_BODIES = (400, 408, 413, 500)
OF_DECODING = (*OF_BODIES, 429, 503, 504)
"""Errors of requests with a body (`OF_BODIES`), and of those that are decoded."""
OF_CHANGES = (*OF_BODIES, 409, 503, 504)
"""Errors of requests that change the weights."""
QUESTION = "What is 3 + 4?"
SHORT = {"max_tokens": 32, "seed": 1}
CHAT = {"messages": [{"role": "user", "content": QUESTION}], **SHORT}
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "ChatRequest": {
        "a question": CHAT,
        "two answers, streamed with events": {**CHAT, "n": 2, "temperature": 0.8, "stream": True, "dlm_events": True},
        "an algorithm and its parameter": {**CHAT, "generation_algorithm": "basic", "threshold": 0.8, "logprobs": True},
    },
    "CompletionRequest": {
        "a text": {"prompt": QUESTION, "logprobs": 1, **SHORT},
        "log-probabilities of a text": {"prompt": QUESTION, "echo": True, "logprobs": 1, "max_tokens": 0},
        "several, streamed": {"prompt": [QUESTION, "Hi"], "stop": ["\n"], "stream": True, **SHORT},
    },
    "SubmitRequest": {"a question": {"prompt": QUESTION, **SHORT}},
    "SubmitBatchRequest": {"several": {"prompts": [QUESTION, "Hi"], **SHORT}},
    "GenerateRequest": {"two samples": {"prompts": [QUESTION], "n": 2, "temperature": 1.0, "max_tokens": 32}},
    "ConversationsRequest": {"a question": {"messages": [CHAT["messages"]], "max_tokens": 32}},
    "SequencesRequest": {"a text": {"sequences": [[5, 6, 7]], "prompt_lengths": [1], "top_logprobs": 1}},
    "CommunicatorRequest": {"TRL": {"host": "0.0.0.0", "port": 51216, "world_size": 2, "backend": "gloo"}},
    "ParameterRequest": {"a tensor": {"name": "lm_head.weight", "dtype": "torch.float32", "shape": [4, 4]}},
    "PauseRequest": {"pause in place": {"mode": "in_place"}},
    "DiskRequest": {"a step": {"model_path": "checkpoints/step_3", "weight_version": "3"}},
    "TensorRequest": {"one file": {"serialized_named_tensors": ["CAAAAAAAAAB7fSAgICAgIA=="]}},
    "MemoryRequest": {"the weights": {"tags": ["weights"]}},
}
"""By body and title. Any model whose family runs `basic` can answer them."""

Document = dict[str, Any]


def responses(shape: Any, *errors: int, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route.

    Args:
        shape: of the answer; None for a text.
        errors: error statuses besides 401 and 403.
        streams: the answer may be a stream of server-sent events.
    """
    good: dict[str, Any] = {"model": shape, "description": "The answer."} if shape else {"description": "The text."}
    if streams:
        data = {"type": "string", "description": "A chunk; the last is [DONE], or an error."}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        good["content"] = {"text/event-stream": {"schema": event}}
    found: dict[int | str, dict[str, Any]] = {200: good}
    for status in sorted({401, 403, *errors}):
        found[status] = {"model": ErrorBody, "description": REASONS[status]}
    return found


def document(app: FastAPI, names: tuple[str, ...], catalogue: Mapping[str, Any]) -> Document:
    """The document of `app`, which serves a model under `names`; `catalogue` has the ranges."""
    made = get_openapi(title=app.title, version=app.version, routes=app.routes, description=(
        "Text from a diffusion language model. Request fields that are not listed are ignored, except those that other "
        "servers support and this one does not (min_p, repetition_penalty, guided_json, ...): these are rejected "
        "unless they have no effect. Null counts as unset. The key, if the server has one, is sent as "
        "Authorization: Bearer."
    ))  # fmt: skip
    for operation in (one for path in made["paths"].values() for one in path.values()):
        operation["responses"].pop("422", None)  # ours are 400
        if "requestBody" in operation:
            content = operation["requestBody"]["content"]["application/json"]
            schema = content["schema"]  # an optional body has null as an alternative
            examples = EXAMPLES[schema.get("anyOf", [schema])[0]["$ref"].rpartition("/")[2]]
            content["examples"] = {title: {"value": value} for title, value in examples.items()}
    schemas = made["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    ranges = _ranges(catalogue)
    for body in (schemas[name] for name in EXAMPLES if name in schemas):
        for name, one in body["properties"].items():
            if name in ranges:
                _narrow(one, ranges[name])
        if "model" in body["properties"]:
            _narrow(body["properties"]["model"], {"choices": list(names)})
    _narrow(schemas["CompletionRequest"]["properties"]["max_tokens"], {"minimum": 0})  # only the echoed prompt
    return made


def _ranges(catalogue: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Ranges by field: the widest one of a parameter that several algorithms have."""
    found: dict[str, dict[str, Any]] = {
        "generation_algorithm": {
            "description": "Name or alias of an algorithm; see GET /generation/algorithms.",
            "choices": [AUTO, *(name for key, one in ALGORITHMS.items() for name in (key, *one.aliases))],
        },
        "n": {"description": "Samples of each prompt.", "minimum": 1, "maximum": MOST_SAMPLES},
    }
    for parameter in _parameters(catalogue):
        name = parameter["name"]
        widest = found.setdefault(name, dict(parameter))
        if parameter["minimum"] is not None:
            widest["minimum"] = min(widest["minimum"], parameter["minimum"])
        for key, wider in (("maximum", max), ("choices", _both)):
            bounded = widest[key] is not None and parameter[key] is not None
            widest[key] = wider(widest[key], parameter[key]) if bounded else None
    found["max_completion_tokens"] = found["max_tokens"]
    return found


def _both(one: list[str], other: list[str]) -> list[str]:
    return list(dict.fromkeys((*one, *other)))


def _parameters(catalogue: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from catalogue["parameters"]
    for algorithm in catalogue["algorithms"]:
        yield from algorithm["parameters"]


def _narrow(schema: dict[str, Any], responses: Mapping[str, Any]) -> None:
    """Write description and range into a field's schema, except into its null alternative."""
    if "description" in responses:
        schema["description"] = responses["description"]
    for kind in schema.get("anyOf", [schema]):
        if kind["type"] == "string" and responses.get("choices"):
            kind["enum"] = responses["choices"]
        if kind["type"] in ("integer", "number"):
            low, high = responses.get("minimum"), responses.get("maximum")
            if low is not None:
                kind["exclusiveMinimum" if responses.get("exclusive_minimum") else "minimum"] = low
            if high is not None:
                kind["maximum"] = high
