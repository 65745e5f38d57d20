"""A fault in one row costs that row alone; ids are stable."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.data.prompts import HfPrompts, JsonlPrompts, Prompt, check_of, digest
from dlm.decoding.noise import seed_of
from dlm.errors import DataError, MissingExtraError
from dlm.runs.shards import to_line


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
        (b'{"prompt": "x", "score": NaN}', "NaN is not a JSON number"),
        (b'{"prompt": "x", "id": {}}', "an id must be text or a whole number"),
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


ODD = {
    "a number beyond JSON": (b'{"prompt": "x", "score": 1e999}', "field 'score': 1e999 is not a JSON number"),
    "one inside": (b'{"prompt": "x", "deep": [{"a": [-1e999]}]}', "field 'deep': -1e999 is not a JSON number"),
    "Infinity": (b'{"prompt": "x", "a": [Infinity]}', "Infinity is not a JSON number"),
    "digits without end": (b'{"prompt": "x", "a": ' + b"9" * 10_000 + b"}", "9999 is not a JSON number"),
    "half a pair": (b'{"prompt": "x", "note": "\\udc00"}', "field 'note': it holds half of a surrogate pair"),
    "half a pair inside": (b'{"prompt": "x", "a": [{"b": "\\ud800"}]}', "field 'a': it holds half"),
    "half a pair as a key": (b'{"prompt": "x", "a": {"\\ud800": 1}}', "field 'a': it holds half"),
    "half a pair as a name": (b'{"prompt": "x", "\\ud800": 1}', r"field '\ud800': it holds half"),
    "half a pair in a message": (
        b'{"prompt": [{"role": "\\ud800", "content": "x"}]}',
        "field 'prompt': it holds half",
    ),
    "deep": (b'{"prompt": "x", "a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested more than 64 levels"),
    "deep objects": (b'{"prompt": "x", "a": ' + b'{"b":' * 500 + b"1" + b"}" * 501, "nested more than 64 levels"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_could_not_be_written_again_is_a_fault_of_its_row(name: str, tmp_path: Path) -> None:
    line, said = ODD[name]
    prompts = read(tmp_path / "p", {"prompt": "one"}, line, {"prompt": "three"})
    assert [prompt.fault is None for prompt in prompts] == [True, False, True]
    bad = prompts[1]
    assert (bad.id, bad.content, bad.row) == ("line-2", "", {})
    assert bad.fault is not None
    assert said in bad.fault.message
    to_line({"id": bad.id, "message": bad.fault.message})


def test_an_id_that_can_be_kept_stays_with_a_row_that_cannot(tmp_path: Path) -> None:
    prompts = read(
        tmp_path / "p",
        b'{"id": "mine", "prompt": "x", "score": 1e999}',
        b'{"id": "x\\ud800", "prompt": "y"}',
        b'{"id": 1e999, "prompt": "z"}',
        b'{"id": "mine", "prompt": "again"}',
    )
    assert [prompt.id for prompt in prompts] == ["mine", "line-2", "line-3", "line-4"]
    assert all(prompt.fault is not None for prompt in prompts)


@pytest.mark.parametrize(
    "id", ["", "\x00", "a/b", "../..", "x" * 100_000, "\u2028", 0, -1, 10**4000, True, 1.5, None, [], {}, [[["x"]]]]
)
def test_an_id_of_any_text_or_type_is_a_name_or_a_fault(id: Any, tmp_path: Path) -> None:
    first, second = read(tmp_path / "p", {"prompt": "x", "id": id}, {"prompt": "y"})
    usable = id is None or (isinstance(id, str | int) and not isinstance(id, bool) and id != "")
    assert (first.fault is None) == usable
    assert first.id == (str(id) if usable and id is not None else "line-1")
    assert first.fault is None or len(first.fault.message) < 300
    assert second.fault is None


def test_columns_with_names_of_ours_are_only_columns(tmp_path: Path) -> None:
    names = ("family", "n", "seed", "prompt_ids", "text", "token_ids", "error", "sample", "row", "nfe", "content")
    (prompt,) = read(tmp_path / "p", {"prompt": "x", **{name: [1, {"a": None}] for name in names}})
    assert prompt.fault is None
    assert set(prompt.row) == set(names)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from(["prompt", "id", "family", "n", "\ud800", "x"]), JSON), max_size=5))
def test_whatever_rows_hold_they_can_be_told_apart_seeded_and_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    prompts = read(tmp_path_factory.mktemp("data") / "p", {"prompt": "first"}, *rows)
    assert len(prompts) == 1 + len(rows)
    digest(prompts)
    for prompt in prompts:
        seed_of(0, prompt.id)
        message = prompt.fault.message if prompt.fault is not None else ""
        row = {"id": prompt.id, "prompt": prompt.content, "row": prompt.row, "error": message}
        assert json.loads(to_line(row)) == row


def test_only_data_sets_that_bring_a_check_have_one() -> None:
    assert JsonlPrompts.check is None
    assert check_of("dlm.data.prompts.HfPrompts") is None
    for target in ("os.system", None, 3, ["x"]):
        assert check_of(target) is None
    check = check_of("dlm.data.prompts.DemoPrompts")
    assert check is not None
    assert check({"family": "add"}, "Add 1 and 2 eggs.", "Sum: 3 eggs") == ("add", True)
    for family in ("none", ["split"], {}, None, 3):
        assert check({"family": family}, "Add 1 and 2 eggs.", "x") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with a name")
def test_a_pipe_is_named_before_anybody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe or a device" in JsonlPrompts(str(tmp_path / "pipe")).faults()[0]
    assert "no such file" in JsonlPrompts("x" * 5000).faults()[0]
    assert "no such file" in JsonlPrompts("a\x00b").faults()[0]


def test_a_data_set_that_breaks_while_it_is_read_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    def load_dataset(*path: Any, **options: Any) -> Any:
        yield {"prompt": "x"}
        raise OSError("a shard is missing")

    module = ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "datasets", module)
    with pytest.raises(DataError, match="cannot be loaded: OSError: a shard is missing"):
        HfPrompts("owner/name").read()
