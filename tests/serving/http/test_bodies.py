"""Whatever a body holds, it is refused or read quickly: limits in all types, one error a list, a bound on parts."""

from __future__ import annotations

import codecs
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from dlm.serving.http.bodies import PART_BYTES, BodyReader, parts
from dlm.serving.http.errors import ApiError
from dlm.serving.schemas import control_requests as control_bodies
from dlm.serving.schemas.requests import (
    MOST_PROMPTS,
    Body,
    ChatRequest,
    CompletionRequest,
    ScoringRequest,
    SubmitBatchRequest,
)
from tests.hostile_bodies import BATCH, CHAT, KINDS, PLAIN
from tests.serving.inside import serving_inside

READERS: dict[str, TypeAdapter[Any]] = {
    PLAIN: TypeAdapter(CompletionRequest), CHAT: TypeAdapter(ChatRequest), BATCH: TypeAdapter(SubmitBatchRequest),
}  # fmt: skip
BODIES = BodyReader(4 * 2**20)
SMALL = 100_000
"""Bytes of bodies that the bound on their parts lets pass, most of them."""
READABLE = ("escapes", "brackets in a text", "quotes in a text", "digits behind a point")
"""Kinds of body that are valid, as far as the types say."""
FAULTS = 20
"""Errors that a validation may find: a few for each field that is wrong."""


def all_bodies(kind: type[BaseModel] = Body) -> Iterator[type[BaseModel]]:
    for one in kind.__subclasses__():
        yield one
        yield from all_bodies(one)


def parts_of(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema inside, with where it is."""
    if isinstance(schema, dict):
        if "type" in schema:
            yield place, schema
        for key, value in schema.items():
            yield from parts_of(value, f"{place}.{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from parts_of(value, f"{place}.{index}")


LIMITS = {
    "string": ({"maxLength"}, {"enum"}, {"const"}),
    "array": ({"maxItems"},),
    "integer": ({"minimum", "maximum"},),
    "number": ({"minimum", "maximum"},),
}
"""By type: the keys of which one set has to be there."""


def test_every_list_text_and_number_of_a_body_has_limits() -> None:
    assert control_bodies.GenerateRequest in set(all_bodies())
    seen, without = 0, []
    for kind in (*all_bodies(), ScoringRequest):
        for place, schema in parts_of(kind.model_json_schema(), kind.__name__):
            wanted = LIMITS.get(schema["type"]) if isinstance(schema["type"], str) else None
            if wanted is not None:
                seen += 1
                if not any(keys <= schema.keys() for keys in wanted):
                    without.append(place)
    assert seen > 500
    assert without == []


@pytest.mark.parametrize("name", KINDS)
def test_a_validation_ends_with_the_first_wrong_item(name: str) -> None:
    kind = KINDS[name]
    faults = 0
    try:
        READERS[kind.path].validate_json(kind.body(SMALL))
    except ValidationError as error:
        faults = error.error_count()
    assert faults <= FAULTS


@pytest.mark.parametrize("name", KINDS)
def test_a_large_body_is_refused_with_a_text_or_read(name: str) -> None:
    kind = KINDS[name]
    with suppress(ApiError):
        BODIES.parse(READERS[kind.path], kind.body())
        assert name in READABLE


Document = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def counted(document: Any) -> int:
    """Lists, objects and texts, names of fields too."""
    if isinstance(document, dict):
        return 1 + len(document) + sum(map(counted, document.values()))
    if isinstance(document, list):
        return 1 + sum(map(counted, document))
    return int(isinstance(document, str))


@given(Document, st.booleans())
def test_parts_are_counted_without_parsing(document: Any, ascii_alone: bool) -> None:
    assert len(list(parts(json.dumps(document, ensure_ascii=ascii_alone).encode()))) == counted(document)


@given(st.binary(max_size=200) | st.text('\\"[{,}]a', max_size=200).map(str.encode))
def test_no_bytes_are_read_twice(data: bytes) -> None:
    places = [match.span() for match in parts(data)]
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(places))
    BODIES.check_size(data)


def test_bounds_are_exact_and_texts_count_once() -> None:
    most_parts, most_values = BODIES.most_parts, BODIES.most_values
    BODIES.check_size(json.dumps({"prompt": '[{"' * most_parts}).encode())
    BODIES.check_size(b"[" * most_parts)
    with pytest.raises(ApiError, match=f"more than {most_parts} lists, objects and strings; .* max_body_mib"):
        BODIES.check_size(b"[" * (most_parts + 1))
    BODIES.check_size(b"," * (most_values - 1))
    with pytest.raises(ApiError, match=f"the limit is {most_values} values; .* max_body_mib"):
        BODIES.check_size(b"," * most_values)
    assert BodyReader(2**10).most_parts == most_parts
    assert BodyReader(2**30).most_parts == 2**30 // PART_BYTES


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": ["a"] * (MOST_PROMPTS + 1)}, "prompt", f"at most {MOST_PROMPTS} items"),
        ({"prompt": [[1]] * (MOST_PROMPTS + 1)}, "prompt", f"at most {MOST_PROMPTS} items"),
        ({"prompt": [1, "a"]}, "prompt.1", "valid integer"),
        ({"prompt": [[1], [2**70]]}, "prompt.1.0", "less than or equal to"),
        ({"prompt": "a", "cfg_scale": 10**400}, "cfg_scale", ""),
        ({"prompt": "a", "cfg_scale": float("nan")}, "cfg_scale", ""),
        ({"prompt": "a", "temperature": 1e300}, "temperature", "less than or equal to"),
        ({"prompt": "a", "seed": 2**63}, "seed", "less than or equal to"),
        ({"prompt": "a", "algorithm": "a" * 1000}, "algorithm", "at most 256 characters"),
        ({"prompt": "a", "dlm": {"what": 1}}, "dlm.what", "unknown here"),
        ({"prompt": "a\ud800"}, None, "not valid JSON: "),
        ({"prompt": "a", "x": json.loads("[" * 250 + "]" * 250)}, None, "recursion limit"),
    ],
)
def test_the_fault_that_is_told_is_the_one_that_was_meant(body: dict[str, Any], param: str | None, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        BODIES.parse(READERS[PLAIN], json.dumps(body).encode())
    assert (caught.value.status, caught.value.param) == (400, param), caught.value.message
    assert said in caught.value.message


def test_what_python_takes_a_body_for_is_not_changed() -> None:
    data = b'{"prompt": [1, 2], "temperature": 1, "seed": 9223372036854775807, "b": {}}'
    body = BODIES.parse(READERS[PLAIN], codecs.BOM_UTF8 + data)
    assert (body.prompt, body.temperature, body.seed, body.unknown) == ([1, 2], 1.0, 2**63 - 1, {"b": {}})


def test_bodies_are_read_in_a_thread_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def noted(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return parse(*given)

    parse = BodyReader.parse
    monkeypatch.setattr(BodyReader, "parse", noted)
    with serving_inside() as inside:
        for path, field in (("/v1/completions", "prompt"), ("/v1/chat/completions", "messages"), (BATCH, "prompts")):
            assert httpx.post(inside.url + path, json={field: 3}).status_code == 400
        bare = httpx.post(
            f"{inside.url}/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"}
        )
        assert bare.status_code == 400
        assert "Content-Type is 'text/plain'" in bare.text
    assert threads == ["bodies_0"] * 3
