"""Tasks: rows of data as questions for a model. A task is a value built from `conf/task/`; it reads and asks, and knows
neither models nor decoding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, ClassVar

from dlm._quoting import quoted
from dlm.data.prompts import Fault, HfPrompts, JsonlPrompts, Prompt, PromptSource, require_prompts
from dlm.errors import ConfigError, DataError
from dlm.evaluation.graders.checkers import Checker, Choice, checker_of, place_of
from dlm.evaluation.sandbox.run import Sandbox
from dlm.evaluation.shots import Shots, filled

MOST_CHOICES = len(ascii_uppercase)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What all tasks have.

    Attributes:
        name: for people, and for tables of several runs.
        template: the question, with `{field}` for fields of the row, `{prompt}` for that of `data.prompt_field`, and
            `{options}` for lettered choices.
        answer_field: the field of the right answer; None where a checker needs none.
        choices_field: the field of the choices: a list of texts, or `{"text": [...], "label": [...]}`; None without.
        group_field: scores are also given for each value of this field; a list counts as one value.
        only: with `group_field`, only rows with one of these values; None: all.
        num_shots: examples before each question.
        shots_path: file of the examples, one JSON object a line with the same fields.
        shots_split: with `data=hf`, the split of the examples.
        shots_seed: draws examples for each question; None takes the first ones for all.
        shot_answer: how an example's answer is put.
        shots_as_turns: examples are turns of a conversation, for chat models; else one text.
    """

    name: str
    template: str = "{prompt}"
    answer_field: str | None = None
    choices_field: str | None = None
    group_field: str | None = None
    only: Sequence[str] | None = None
    num_shots: int = 0
    shots_path: str | None = None
    shots_split: str | None = None
    shots_seed: int | None = None
    shot_answer: str = " {answer}"
    shots_as_turns: bool = False

    generates: ClassVar[bool]
    """Answers are decoded; else given ones are scored."""

    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Fields without which a row cannot be judged; `answer` stands for `answer_field`."""

    def faults(self, source: PromptSource) -> list[str]:
        """What is wrong without reading a file, each with its key and remedy."""
        found = []
        if self.num_shots < 0:
            found.append(f"task.num_shots={self.num_shots}: must be at least 0")
        given = [self.shots_path is not None, self.shots_split is not None]
        if self.num_shots and sum(given) != 1:
            found.append(
                f"task.num_shots={self.num_shots}: write task.shots_path=<file of examples>, or with data=hf "
                "task.shots_split=train"
            )
        if not self.num_shots and any(given):
            found.append("task.shots_path and task.shots_split have a meaning with task.num_shots above 0 alone")
        if self.shots_path is not None and not Path(self.shots_path).expanduser().is_file():
            found.append(f"task.shots_path={self.shots_path}: no such file")
        if self.shots_split is not None and not isinstance(source, HfPrompts):
            found.append(
                f"task.shots_split={self.shots_split}: only a data set has splits (data=hf); use task.shots_path"
            )
        if self.only is not None and self.group_field is None:
            found.append("task.only: set task.group_field to the field that holds these values")
        if "answer" in self.needs() and self.answer_field is None:
            found.append("task.answer_field is not set: write task.answer_field=<field of the right answer>")
        return found

    def read(self, source: PromptSource) -> list[Prompt]:
        """The questions in the order of the data; a row that cannot be asked or judged carries its fault.

        Each question's `row` holds the fields of the data, the question itself as `prompt`.

        Raises:
            DataError: the data cannot be read, nothing in it is of a value of `only`, or what `only` is compared with
                is a list or an object.
        """
        name = getattr(source, "prompt_field", "prompt")
        shots = Shots(
            list(self._examples(source, name)),
            self.num_shots,
            self.shots_seed,
            self.template,
            self.shot_answer,
            self.shots_as_turns,
        )
        rows = source.read()
        if self.only is not None:
            self._check_only(self.only, rows)
        return [self._ask(prompt, shots, name) for prompt in rows if self._wanted(prompt)]

    def _check_only(self, only: Sequence[str], rows: Sequence[Prompt]) -> None:
        """Raise `DataError` unless the rows can be told apart by `only`, and each of its values is there."""
        there = set()
        for prompt in rows:
            value = prompt.row.get(self.group_field or "")
            if isinstance(value, list | dict):
                raise DataError(
                    f"task.only={list(only)}: {self.group_field} of row {quoted(prompt.id)} is {quoted(value)}, "
                    "not one value; name a field of single values as task.group_field, or leave task.only out"
                )
            there.add(value)
        lacking = [value for value in only if value not in there]
        if lacking or not only:
            names = ", ".join(map(str, lacking)) or "nothing"
            raise DataError(f"task.only: no row has a {self.group_field} of {names}")

    def _examples(self, source: PromptSource, name: str) -> Iterator[dict[str, Any]]:
        if not self.num_shots:
            return
        if self.shots_split is not None and isinstance(source, HfPrompts):
            examples = replace(source, split=self.shots_split, limit=None).read()
        else:
            file = JsonlPrompts(str(self.shots_path), name, getattr(source, "id_field", "id"))
            examples = file.read("task.shots_path")
        require_prompts(examples, "examples can be used")
        for prompt in examples:
            if prompt.fault is None and isinstance(prompt.content, str):
                row = self._row(prompt.row, prompt.content)
                yield {**row, name: prompt.content, "answer": row.get(self.answer_field or "answer")}

    def _wanted(self, prompt: Prompt) -> bool:
        return self.only is None or prompt.row.get(self.group_field or "") in self.only

    def _ask(self, prompt: Prompt, shots: Shots, name: str) -> Prompt:
        if prompt.fault is not None:
            return prompt
        if not isinstance(prompt.content, str):
            if self.template != "{prompt}" or self.num_shots or self.choices_field is not None:
                fault = Fault("DataError", f"field {name!r} is a list of messages; a template needs text")
                return replace(prompt, fault=fault)
            return replace(prompt, row={**prompt.row, "prompt": prompt.content})
        try:
            row = self._row(prompt.row, prompt.content)
            asked = shots.ask(prompt.id, {**row, name: prompt.content})
        except DataError as error:
            return replace(prompt, fault=Fault("DataError", str(error)))
        return replace(prompt, content=asked, row=row)

    def _row(self, fields: dict[str, Any], question: str) -> dict[str, Any]:
        """The row as it is kept. Raises `DataError` where a field is missing."""
        row = {**fields, "prompt": question}
        needs = [self.answer_field if need == "answer" else need for need in self.needs()]
        missing = [need for need in needs if need is not None and row.get(need) is None]
        if missing:
            raise DataError(f"no field {missing[0]!r}, without which the answer cannot be judged")
        if self.choices_field is not None:
            row |= self._choices(row)
        return row

    def _choices(self, row: dict[str, Any]) -> dict[str, Any]:
        """The choices as a list, lettered as `options`, and the right one by its place where that is known."""
        given: Any = row.get(self.choices_field or "")
        labels: Any = None
        if isinstance(given, dict):
            given, labels = given.get("text"), given.get("label")
        if not isinstance(given, list) or not 2 <= len(given) <= MOST_CHOICES:
            raise DataError(f"field {self.choices_field!r} is no list of 2 to {MOST_CHOICES} choices")
        options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, given, strict=False))
        found: dict[str, Any] = {"choices": [str(choice) for choice in given], "options": options}
        if self.answer_field is not None:
            reference = row[self.answer_field]
            labelled = isinstance(labels, list) and reference in labels
            found["right"] = labels.index(reference) if labelled and labels else place_of(reference, len(given))
        return found


@dataclass(frozen=True, kw_only=True)
class GenerationTask(Task):
    """Answers are decoded, and judged by a checker.

    Attributes:
        checker: a name of `dlm.evaluation.graders.checkers.CHECKERS`, or `package.module:function`.
    """

    checker: str

    generates: ClassVar[bool] = True

    def needs(self) -> tuple[str, ...]:
        return self.judge(Sandbox()).needs

    def judge(self, sandbox: Sandbox) -> Checker:
        """The checker. Raises `ConfigError` where there is none of that name."""
        checker = checker_of(self.checker, sandbox)
        return Choice(listed=True) if isinstance(checker, Choice) and self.choices_field is not None else checker

    def faults(self, source: PromptSource) -> list[str]:
        try:
            return super().faults(source)
        except ConfigError as error:
            return [str(error)]


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(Task):
    """Given answers are scored by their likelihood, and the most likely one is the model's.

    Attributes:
        choice: what is scored, with `{choice}` and `{letter}`.
        scheme: a name of `dlm.likelihood.SCHEMES`.
        scheme_options: its parameters, such as `{mc_num: 128}`.
        by: what choices are compared by: `sum`, `token` or `character` (the sum over that many).
    """

    choice: str = " {choice}"
    scheme: str = "llada_mc"
    scheme_options: dict[str, Any] | None = None
    by: str = "sum"

    generates: ClassVar[bool] = False

    def needs(self) -> tuple[str, ...]:
        return ("answer",)

    def faults(self, source: PromptSource) -> list[str]:
        found = super().faults(source)
        if self.choices_field is None:
            found.append("task.choices_field is not set: write task.choices_field=<field of the choices>")
        if self.by not in ("sum", "token", "character"):
            found.append(f"task.by={self.by}: sum, token or character")
        return found

    def _choices(self, row: dict[str, Any]) -> dict[str, Any]:
        found = super()._choices(row)
        pairs = zip(ascii_uppercase, found["choices"], strict=False)
        found["scored"] = [filled(self.choice, {"choice": choice, "letter": letter}) for letter, choice in pairs]
        if not all(text.strip() for text in found["scored"]):
            raise DataError(f"field {self.choices_field!r} holds an empty choice")
        return found
