"""A fault in one row costs that row alone; ids are stable."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.errors import DataError, MissingExtraError
from dlm.pipeline.prompts import HfPrompts, JsonlPrompts, Prompt, digest


def read(path: Path, *lines: bytes | dict[str, Any], **options: Any) -> list[Prompt]:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return JsonlPrompts(str(path), **options).read()


def test_rows_are_named_by_their_id_or_their_line(tmp_path: Path) -> None:
    prompts = read(tmp_path / "p", {"prompt": "one"}, b"", {"prompt": "two", "id": "x"}, {"prompt": "three", "id": 7})
    assert [(prompt.id, prompt.content) for prompt in prompts] == [("line-1", "one"), ("x", "two"), ("7", "three")]


def test_other_fields_go_along(tmp_path: Path) -> None:
    (prompt,) = read(
        tmp_path / "p", {"question": "q", "answer": 3, "key": "k"}, prompt_field="question", id_field="key"
    )
    assert (prompt.id, prompt.content, prompt.row) == ("k", "q", {"answer": 3})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b'{"prompt": "x"', "broken JSON"),
        (b'{"prompt": "\xff\xfe"}', "invalid UTF-8 at byte 12"),
        (b"[1, 2]", "a JSON list, not an object"),
        (b"{}", "no field 'prompt', only none"),
        (b'{"text": "x"}', "no field 'prompt', only 'text'; see data.prompt_field"),
        (b'{"prompt": ""}', "field 'prompt' is empty"),
        (b'{"prompt": " \\n "}', "field 'prompt' is empty"),
        (b'{"prompt": null}', "neither text nor a list of messages"),
        (b'{"prompt": 3}', "neither text nor a list of messages"),
        (b'{"prompt": []}', "field 'prompt' is empty"),
        (b'{"prompt": ["x"]}', 'not of {"role", "content"} messages'),
        (b'{"prompt": [{"role": "user", "content": null}]}', "neither text nor a list of messages"),
        (b'{"prompt": "\\ud800"}', "half of a surrogate pair"),
        (b'{"prompt": "x", "score": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "x", "id": {}}', "an id is text or a whole number"),
        (b"[" * 100_000, "broken JSON"),
    ],
)
def test_a_bad_line_17_costs_that_line_alone(tmp_path: Path, bad: bytes, said: str) -> None:
    lines: list[bytes | dict[str, Any]] = [{"prompt": f"number {number}"} for number in range(1, 21)]
    lines[16] = bad
    prompts = read(tmp_path / "p", *lines)
    assert [prompt.id for prompt in prompts] == [f"line-{number}" for number in range(1, 21)]
    faulty = [prompt for prompt in prompts if prompt.fault is not None]
    assert [prompt.id for prompt in faulty] == ["line-17"]
    assert faulty[0].fault is not None
    assert said in faulty[0].fault.message


def test_a_duplicate_id_is_a_fault_of_the_second_row(tmp_path: Path) -> None:
    prompts = read(
        tmp_path / "p", {"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}, {"prompt": "c", "id": "line-2"}
    )
    assert [(prompt.id, prompt.fault is None) for prompt in prompts] == [
        ("x", True),
        ("line-2-2", False),
        ("line-2", True),
    ]


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.text(max_size=30).map(lambda t: json.dumps({"prompt": t}).encode())))
)
def test_whatever_a_file_holds_ids_differ_and_nothing_else_is_raised(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    prompts = read(tmp_path_factory.mktemp("data") / "p", {"prompt": "first"}, *lines)
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert prompts[0].fault is None


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    assert len(read(tmp_path / "p", *({"prompt": "x"} for _ in range(9)), limit=4)) == 4


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path / "p", b'\xef\xbb\xbf{"prompt": "x"}\r')
    assert (prompt.content, prompt.fault) == ("x", None)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_no_prompts_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="holds no prompt"):
        read(tmp_path / "p", content)


def test_a_digest_tells_prompts_apart(tmp_path: Path) -> None:
    one, two = (read(tmp_path / "p", {"prompt": text}) for text in ("a", "b"))
    assert digest(one) == digest(list(one)) != digest(two)


def test_a_data_set_without_the_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dlm\[hf\]'"):
        HfPrompts("owner/name").read()


def test_a_data_set_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    asked: list[Any] = []

    def load_dataset(*path: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((path, options))
        return [{"question": "q1", "score": float("inf")}, {"question": "", "score": 1.0}]

    module = ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    prompts = HfPrompts("owner/name", "main", "test", "abc", prompt_field="question").read()
    assert asked == [(("owner/name", "main"), {"split": "test", "revision": "abc"})]
    assert [(prompt.id, prompt.row, prompt.fault is None) for prompt in prompts] == [
        ("row-1", {"score": None}, True),
        ("row-2", {"score": 1.0}, False),
    ]


def test_the_absence_of_the_package_is_a_fault_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in HfPrompts("owner/name").faults()[0]
