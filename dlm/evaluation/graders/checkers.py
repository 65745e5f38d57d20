"""What makes an answer right, by name. A checker reads the texts of question and answer; it knows no model.

To add one: a class with a `check`, and its line in `CHECKERS`. Without either,
`task.checker=package.module:function` names a function of the row (a dict) and the answer's text that returns whether
it is right.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from string import ascii_uppercase
from typing import Any, ClassVar, Protocol

from dlm._quoting import quoted
from dlm.demo.tasks import check as check_demo
from dlm.errors import ConfigError, DataError
from dlm.evaluation.graders.choices import choice_letter
from dlm.evaluation.graders.mathematics import boxed, same
from dlm.evaluation.graders.numbers import final_number
from dlm.evaluation.graders.programs import Program, humaneval_program, mbpp_program
from dlm.evaluation.sandbox.run import Sandbox


@dataclass(frozen=True)
class Verdict:
    """What a checker found.

    Attributes:
        right: whether the answer counts.
        answer: what was read out of the text; None where nothing could be.
        reference: what it was compared with; None where there is no one answer.
        reason: why it does not count, where a checker can tell.
    """

    right: bool
    answer: str | None = None
    reference: str | None = None
    reason: str = ""


class Checker(Protocol):
    """Judges answers.

    Attributes:
        needs: fields without which a row cannot be judged; `answer` stands for the task's `answer_field`.
        executes: answers are run as code.
    """

    needs: ClassVar[tuple[str, ...]]
    executes: ClassVar[bool]

    def check(self, row: dict[str, Any], reference: Any, text: str) -> Verdict:
        """Judge `text`.

        Args:
            row: the input row, its prompt as `prompt` among its fields.
            reference: the row's answer; None where the task has no `answer_field`.
            text: the answer.
        """


@dataclass(frozen=True)
class Demo:
    """The checkers of the demo's families; any valid answer counts."""

    needs: ClassVar[tuple[str, ...]] = ("family",)
    executes: ClassVar[bool] = False

    def check(self, row: dict[str, Any], reference: Any, text: str) -> Verdict:
        return Verdict(check_demo(row["family"], row["prompt"], text), text.strip())


@dataclass(frozen=True)
class Number:
    """The final numbers are equal (GSM8K)."""

    needs: ClassVar[tuple[str, ...]] = ("answer",)
    executes: ClassVar[bool] = False

    def check(self, row: dict[str, Any], reference: Any, text: str) -> Verdict:
        wanted, found = final_number(str(reference)), final_number(text)
        if wanted is None:
            raise DataError(f"the reference {reference!r} holds no number")
        return Verdict(found == wanted, _shown(found), _shown(wanted))


@dataclass(frozen=True)
class Math:
    r"""What stands in the last `\boxed{}` says the same as the reference, or as the box in it (MATH)."""

    needs: ClassVar[tuple[str, ...]] = ("answer",)
    executes: ClassVar[bool] = False

    def check(self, row: dict[str, Any], reference: Any, text: str) -> Verdict:
        wanted, found = boxed(str(reference)) or str(reference), boxed(text)
        if found is None:
            said = re.findall(r"(?i:answer is)\s*:?\s*(.+?)\s*\.?\s*$", text, re.MULTILINE)
            found = said[-1] if said else None
        return Verdict(found is not None and same(found, wanted), found, wanted)


@dataclass(frozen=True)
class Choice:
    """The letter of the right choice.

    Attributes:
        listed: the task has a `choices_field`, and has put `choices` and the place of the `right` one into the row;
            else the reference is one of A to D, or a place from 0 to 3.
    """

    listed: bool = False
    needs: ClassVar[tuple[str, ...]] = ("answer",)
    executes: ClassVar[bool] = False

    def check(self, row: dict[str, Any], reference: Any, text: str) -> Verdict:
        count = len(row["choices"]) if self.listed else 4
        wanted = ascii_uppercase[row["right"] if self.listed else place_of(reference, count)]
        found = choice_letter(text, count)
        return Verdict(found == wanted, found, wanted)


@dataclass(frozen=True)
class Exact:
    """The reference itself, but for white space around and between words; of several references any."""

    needs: ClassVar[tuple[str, ...]] = ("answer",)
    executes: ClassVar[bool] = False

    def check(self, row: dict[str, Any], reference: Any, text: str) -> Verdict:
        wanted = [str(one) for one in reference] if isinstance(reference, list) else [str(reference)]
        found = " ".join(text.split())
        return Verdict(any(found == " ".join(one.split()) for one in wanted), found, " | ".join(wanted))


@dataclass(frozen=True)
class HumanEval:
    """The tests of the row pass (arXiv 2107.03374)."""

    sandbox: Sandbox
    needs: ClassVar[tuple[str, ...]] = ("prompt", "entry_point", "test")
    executes: ClassVar[bool] = True

    def check(self, row: dict[str, Any], reference: Any, text: str) -> Verdict:
        return _run(self.sandbox, humaneval_program(row["prompt"], text, row["entry_point"], row["test"]))


@dataclass(frozen=True)
class Mbpp:
    """The asserts of the row pass (arXiv 2108.07732)."""

    sandbox: Sandbox
    needs: ClassVar[tuple[str, ...]] = ("test_list",)
    executes: ClassVar[bool] = True

    def check(self, row: dict[str, Any], reference: Any, text: str) -> Verdict:
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
        return _run(self.sandbox, mbpp_program(text, row["test_list"], setup))


@dataclass(frozen=True)
class Own:
    """A function of the user's."""

    function: Callable[[dict[str, Any], str], bool]
    needs: ClassVar[tuple[str, ...]] = ()
    executes: ClassVar[bool] = False

    def check(self, row: dict[str, Any], reference: Any, text: str) -> Verdict:
        return Verdict(bool(self.function(row, text)), text.strip(), None if reference is None else str(reference))


CHECKERS: dict[str, type[Checker]] = {
    "demo": Demo,
    "number": Number,
    "math": Math,
    "choice": Choice,
    "exact": Exact,
    "humaneval": HumanEval,
    "mbpp": Mbpp,
}


def checker_of(name: str, sandbox: Sandbox, key: str = "task.checker") -> Checker:
    """The checker called `name`, or the function `package.module:function`.

    Raises:
        ConfigError: there is no such thing; says so of `key`.
    """
    if name in CHECKERS:
        kind: Any = CHECKERS[name]
        made: Checker = kind(sandbox) if kind.executes else kind()
        return made
    if ":" not in name:
        raise ConfigError(
            f"{key}={name}: no such checker; choose one of {', '.join(CHECKERS)}, or write package.module:function"
        )
    return Own(imported(name, key))


def imported(path: str, key: str) -> Callable[..., Any]:
    """The function `package.module:function`.

    Raises:
        ConfigError: there is no such function; says so of `key`.
    """
    module, _, name = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module is a user's, and may raise anything
        raise ConfigError(f"{key}={path}: {type(error).__name__}: {error}; write package.module:function") from error
    if not callable(found):
        raise ConfigError(f"{key}={path}: it is a {type(found).__name__}, not a function")
    return found


def place_of(reference: Any, count: int) -> int:
    """Which of `count` choices is meant, from 0, by a letter or a place.

    Raises:
        DataError: it is neither.
    """
    letters = ascii_uppercase[:count]
    text = str(reference).strip()
    if len(text) == 1 and text in letters:
        return letters.index(text)
    if text.isdecimal() and len(text) <= len(str(count)) and int(text) < count and not isinstance(reference, bool):
        return int(text)
    raise DataError(
        f"the reference {quoted(reference)} is neither a letter of {letters} nor a place from 0 to {count - 1}"
    )


def _run(sandbox: Sandbox, program: Program) -> Verdict:
    outcome = sandbox.run(program.code, program.tests, program.setup)
    return Verdict(outcome.passed, str(program), None, outcome.reason)


def _shown(number: Fraction | None) -> str | None:
    """A number as people write it."""
    if number is None:
        return None
    decimal = f"{float(number):.12g}" if number.denominator != 1 else str(number.numerator)
    return decimal if Fraction(decimal) == number else str(number)
