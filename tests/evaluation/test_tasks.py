"""Rows of data become questions: templates, examples, choices; a row that cannot be asked costs itself alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dlm.data.prompts import DemoPrompts, HfPrompts, JsonlPrompts, Prompt
from dlm.errors import ConfigError, DataError
from dlm.evaluation.graders.checkers import CHECKERS, Choice, Verdict, checker_of, place_of
from dlm.evaluation.sandbox.run import ProgramOutcome, Sandbox
from dlm.evaluation.tasks import ChoiceTask, GenerationTask

QUESTIONS: list[dict[str, Any]] = [
    {"question": f"How much is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(1, 9)
]


def write(path: Path, rows: list[dict[str, Any]]) -> JsonlPrompts:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlPrompts(str(path), "question")


@pytest.fixture
def source(tmp_path: Path) -> JsonlPrompts:
    return write(tmp_path / "questions.jsonl", QUESTIONS)


def gsm8k(**options: Any) -> GenerationTask:
    return GenerationTask(name="gsm8k", checker="number", answer_field="answer", **options)


def test_a_template_is_filled_and_the_row_keeps_its_question(source: JsonlPrompts) -> None:
    first = gsm8k(template="Q: {question} Put it in \\boxed{}.\nA:").read(source)[0]
    assert first.content == "Q: How much is 1 + 1? Put it in \\boxed{}.\nA:"
    assert first.row == {"answer": "1 + 1 = 2\n#### 2", "prompt": "How much is 1 + 1?"}
    assert first.id == "line-1"


def test_a_field_of_the_template_that_a_row_lacks_is_named(source: JsonlPrompts) -> None:
    faults = {prompt.fault.message for prompt in gsm8k(template="{topic}").read(source) if prompt.fault}
    assert faults == {"no field 'topic', which the template '{topic}' names"}


def test_rows_without_an_answer_cost_themselves_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "some.jsonl", [QUESTIONS[0], {"question": "And 3?"}, {"question": "4?", "answer": None}])
    faults = [prompt.fault and prompt.fault.message for prompt in gsm8k().read(source)]
    assert faults == [None, *["no field 'answer', without which the answer cannot be judged"] * 2]


def test_the_first_examples_stand_before_every_question_but_their_own(source: JsonlPrompts) -> None:
    task = gsm8k(num_shots=2, shots_path=source.path, template="Q: {prompt}\nA:")
    asked = [prompt.content for prompt in task.read(source)]
    one, two, three = (f"Q: How much is {n} + {n}?\nA: {n} + {n} = {2 * n}\n#### {2 * n}\n\n" for n in (1, 2, 3))
    assert asked[7] == f"{one}{two}Q: How much is 8 + 8?\nA:"
    assert asked[0] == f"{two}{three}Q: How much is 1 + 1?\nA:"


def test_drawn_examples_depend_on_the_seed_and_the_question_alone(source: JsonlPrompts, tmp_path: Path) -> None:
    def asked(data: JsonlPrompts, seed: int) -> dict[str, Any]:
        task = gsm8k(num_shots=3, shots_path=source.path, shots_seed=seed)
        return {prompt.id: prompt.content for prompt in task.read(data)}

    whole = asked(source, 0)
    some = write(tmp_path / "some.jsonl", QUESTIONS[:3])
    assert asked(some, 0) == {id: whole[id] for id in ("line-1", "line-2", "line-3")}
    assert asked(source, 1) != whole
    assert len({text.split("How much")[1] for text in whole.values()}) > 1
    for prompt in gsm8k(num_shots=7, shots_path=source.path, shots_seed=5).read(source):
        assert str(prompt.content).count(prompt.row["prompt"]) == 1


def test_examples_as_turns_of_a_conversation(source: JsonlPrompts) -> None:
    task = gsm8k(num_shots=1, shots_path=source.path, shots_as_turns=True)
    assert task.read(source)[3].content == [
        {"role": "user", "content": "How much is 1 + 1?"},
        {"role": "assistant", "content": "1 + 1 = 2\n#### 2"},
        {"role": "user", "content": "How much is 4 + 4?"},
    ]


def test_too_few_examples_are_told(source: JsonlPrompts) -> None:
    faults = [prompt.fault for prompt in gsm8k(num_shots=8, shots_path=source.path).read(source)]
    assert all(fault and "7 examples for task.num_shots=8" in fault.message for fault in faults)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_shots": 2}, "write task.shots_path"),
        ({"num_shots": -1}, "must be at least 0"),
        ({"shots_path": __file__}, "with task.num_shots above 0 alone"),
        ({"num_shots": 1, "shots_path": "/nowhere"}, "task.shots_path=/nowhere: no such file"),
        ({"num_shots": 1, "shots_split": "train"}, "only a data set has splits"),
        ({"only": ["a"]}, "set task.group_field"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_read(
    options: dict[str, Any], said: str, source: JsonlPrompts
) -> None:
    assert any(said in fault for fault in gsm8k(**options).faults(source))


def test_a_task_with_all_that_it_needs_has_no_fault(source: JsonlPrompts) -> None:
    assert gsm8k(num_shots=1, shots_path=source.path).faults(source) == []
    assert gsm8k(num_shots=1, shots_split="train").faults(HfPrompts("openai/gsm8k")) == []
    assert GenerationTask(name="demo", checker="demo").faults(DemoPrompts()) == []


def test_a_checker_that_does_not_exist_or_lacks_its_answer_field() -> None:
    assert "choose one of demo, number" in GenerationTask(name="x", checker="nuber").faults(DemoPrompts())[0]
    assert GenerationTask(name="x", checker="number").faults(DemoPrompts()) == [
        "task.answer_field is not set: write task.answer_field=<field of the right answer>"
    ]
    for name in ("os:nope", "no_such_module:f", "os:sep"):
        with pytest.raises(ConfigError, match=f"task.checker={name}"):
            checker_of(name, Sandbox())


def test_families_of_the_demo_by_name() -> None:
    task = GenerationTask(name="demo", checker="demo", group_field="family", only=["split", "capital"])
    assert {prompt.row["family"] for prompt in task.read(DemoPrompts())} == {"split", "capital"}
    with pytest.raises(DataError, match="no row has a family of spilt"):
        GenerationTask(name="demo", checker="demo", group_field="family", only=["split", "spilt"]).read(DemoPrompts())


@pytest.mark.parametrize("tags", [["a", "b"], {"a": 1}])
def test_rows_are_not_chosen_by_a_field_that_holds_several_values(tags: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "tagged.jsonl", [{**QUESTIONS[0], "tags": "a"}, {**QUESTIONS[1], "tags": tags}])
    said = (
        rf"task.only=\['a'\]: tags of row 'line-2' is {re.escape(repr(tags))}.*task.group_field, or leave task.only out"
    )
    with pytest.raises(DataError, match=said):
        gsm8k(group_field="tags", only=["a"]).read(source)
    assert [prompt.fault for prompt in gsm8k(group_field="tags").read(source)] == [None, None]


CHOICES: list[dict[str, Any]] = [
    {"question": "2?", "choices": ["one", "two"], "answer": 1},
    {"question": "2?", "choices": ["one", "two"], "answer": "B"},
    {"question": "2?", "choices": {"text": ["one", "two"], "label": ["1", "2"]}, "answer": "2"},
]
BAD_CHOICES: list[tuple[dict[str, Any], str]] = [
    ({"question": "2?", "choices": ["one", "two"], "answer": "C"}, "neither a letter of AB nor a place from 0 to 1"),
    ({"question": "2?", "choices": ["one", "two"], "answer": 2}, "neither a letter"),
    ({"question": "2?", "choices": ["one"], "answer": 0}, "no list of 2 to 26 choices"),
    ({"question": "2?", "choices": "one two", "answer": 0}, "no list"),
    ({"question": "2?", "choices": ["one", ""], "answer": 0}, "an empty choice"),
    ({"question": "2?", "choices": ["one", "two"]}, "no field 'answer'"),
    ({"question": "2?", "answer": 0}, "no list"),
]


def test_choices_and_their_right_one_in_every_shape(tmp_path: Path) -> None:
    source = write(tmp_path / "choices.jsonl", CHOICES)
    task = ChoiceTask(name="c", choices_field="choices", answer_field="answer", template="{prompt}\n{options}\n:")
    for prompt in task.read(source):
        assert prompt.fault is None
        assert prompt.content == "2?\nA. one\nB. two\n:"
        assert (prompt.row["right"], prompt.row["scored"]) == (1, [" one", " two"])
    letters = ChoiceTask(name="c", choices_field="choices", answer_field="answer", choice=" {letter}")
    assert letters.read(source)[0].row["scored"] == [" A", " B"]


@pytest.mark.parametrize(("row", "said"), BAD_CHOICES)
def test_choices_that_are_none(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    task = ChoiceTask(name="c", choices_field="choices", answer_field="answer", choice="{choice}")
    (prompt,) = task.read(write(tmp_path / "choices.jsonl", [row]))
    assert prompt.fault is not None
    assert said in prompt.fault.message


def test_a_choice_task_needs_its_fields() -> None:
    found = ChoiceTask(name="c", by="words").faults(JsonlPrompts("x"))
    assert [fault.split(" ")[0].rstrip(":") for fault in found] == [
        "task.answer_field", "task.choices_field", "task.by=words",
    ]  # fmt: skip


def test_messages_go_as_they_are_or_not_at_all(tmp_path: Path) -> None:
    row = {"question": [{"role": "user", "content": "2?"}], "answer": "2"}
    source = write(tmp_path / "m.jsonl", [row])
    assert gsm8k().read(source)[0].content == row["question"]
    fault = gsm8k(template="Q: {prompt}").read(source)[0].fault
    assert fault is not None
    assert "a template needs text" in fault.message


class Told(Sandbox):
    """A sandbox that runs nothing."""

    def run(self, program: str, tests: str = "", setup: str = "") -> ProgramOutcome:
        return ProgramOutcome("return 1" in program, "" if "return 1" in program else "AssertionError: ")


@pytest.mark.parametrize(
    ("name", "row", "reference", "text", "verdict"),
    [
        ("demo", {"family": "add", "prompt": "Add 1 and 2 eggs."}, None, " Sum: 3 eggs\n", (True, "Sum: 3 eggs", None)),
        ("number", {}, "#### 1,000", "It is $1000.00", (True, "1000", "1000")),
        ("number", {}, "#### 0.5", "One half, 1/2", (True, "0.5", "0.5")),
        ("number", {}, "5", "none", (False, None, "5")),
        ("number", {}, "1", "1/3", (False, "1/3", "1")),
        ("math", {}, "so $\\boxed{\\frac12}$", "\\boxed{0.5}", (True, "0.5", "\\frac12")),
        ("math", {}, "7", "The answer is $7$.", (True, "$7$", "7")),
        ("math", {}, "7", "seven", (False, None, "7")),
        ("choice", {}, "B", "(B)", (True, "B", "B")),
        ("choice", {"choices": "mine", "right": "A"}, "B", "B", (True, "B", "B")),
        ("exact", {}, "a  b", " a b\n", (True, "a b", "a  b")),
        ("exact", {}, ["a", "b"], "b", (True, "b", "a | b")),
        ("exact", {}, "a", "A", (False, "A", "a")),
        ("os.path:isabs", {}, None, "", None),
    ],
)
def test_checkers_judge(
    name: str, row: dict[str, Any], reference: Any, text: str, verdict: tuple[bool, str | None, str | None] | None
) -> None:
    checker = checker_of(name, Told())
    if verdict is None:
        with pytest.raises(TypeError):
            checker.check(row, reference, text)
        return
    assert checker.check(row, reference, text) == Verdict(*verdict)


def test_code_is_judged_by_the_sandbox() -> None:
    row = {"prompt": "def f():\n", "entry_point": "f", "test": "def check(c):\n    assert c() == 1\n"}
    assert checker_of("humaneval", Told()).check(row, None, "    return 1").right
    wrong = checker_of("mbpp", Told()).check({"test_list": ["assert f() == 1"]}, None, "def f():\n    return 2")
    assert (wrong.right, wrong.reason) == (False, "AssertionError: ")


def test_every_checker_says_what_it_needs() -> None:
    for name in CHECKERS:
        checker = checker_of(name, Sandbox())
        assert checker.needs
        assert checker.executes is (name in ("humaneval", "mbpp"))


def test_a_broken_row_stays_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": \n')
    first, second = gsm8k().read(JsonlPrompts(str(path), "question"))
    assert first.fault is None
    assert isinstance(second, Prompt)
    assert second.fault is not None
    assert "broken JSON" in second.fault.message


def test_the_task_knows_the_right_choice_where_it_lists_them(tmp_path: Path) -> None:
    row = {"choices": ["x"] * 5, "right": 4}
    assert Choice(listed=True).check(row, "anything", "E") == Verdict(True, "E", "E")
    source = write(tmp_path / "rows.jsonl", [{"question": "?", "opts": ["a", "b"], "answer": "B", "right": "mine"}])
    task = GenerationTask(name="letters", checker="choice", choices_field="opts", answer_field="answer")
    (prompt,) = task.read(source)
    assert task.judge(Sandbox()).check(prompt.row, prompt.row["answer"], "B").right
    without = GenerationTask(name="letters", checker="choice", answer_field="answer")
    (prompt,) = without.read(source)
    assert without.judge(Sandbox()).check(prompt.row, prompt.row["answer"], "B").right


@pytest.mark.parametrize("reference", ["²", "9" * 5000, "-1", "4", True, [], {"a": 1}, "", "AB", 1.0])
def test_a_reference_that_is_no_choice_is_a_data_error(reference: Any) -> None:
    with pytest.raises(DataError, match="is neither a letter of ABCD nor a place from 0 to 3"):
        place_of(reference, 4)


def test_columns_with_names_of_ours_cost_nothing(tmp_path: Path) -> None:
    names = ("family", "n", "seed", "prompt", "options", "scored", "lengths", "text", "error", "id", "sample")
    rows = [{**QUESTIONS[0], **dict.fromkeys(names, odd)} for odd in ({}, [], "x", None, 3)]
    prompts = gsm8k(template="{question}").read(write(tmp_path / "rows.jsonl", rows))
    assert [prompt.content for prompt in prompts if prompt.fault is None] == [QUESTIONS[0]["question"]] * 3
    assert [prompt.fault.message for prompt in prompts if prompt.fault] == [
        "field 'id' is {}; an id must be text or a whole number",
        "field 'id' is []; an id must be text or a whole number",
    ]


def test_a_file_of_examples_without_any_is_told(source: JsonlPrompts, tmp_path: Path) -> None:
    path = tmp_path / "shots.jsonl"
    for data, said in ((b"\x1f\x8b\x08", f"task.shots_path={path} is gzip"), (b'{"q": 1}', "no field 'question'")):
        path.write_bytes(data)
        with pytest.raises(DataError, match=re.escape(said)):
            gsm8k(num_shots=1, shots_path=str(path)).read(source)
