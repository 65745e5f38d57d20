"""What an answer is worth. A reward reads the row that the prompt came from and the answer's text.

To bring one: `reward=function reward.path=package.module:function`, a function of the row (a dict, the prompt among it
as `prompt`) and the text that returns a number; or `reward=checker` with the checker of an evaluation task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from dlm.errors import ConfigError
from dlm.evaluation.checkers import Checker, checker_of, imported
from dlm.evaluation.sandbox import Sandbox

Function = Callable[[dict[str, Any], str], float]


class Reward(Protocol):
    """Built from `conf/reward/`."""

    def faults(self) -> list[str]:
        """What is wrong with it, each with its key and remedy."""

    def function(self) -> Function:
        """The function of a row and an answer's text."""


@dataclass(frozen=True)
class FunctionReward:
    """A function of yours.

    Attributes:
        path: `package.module:function`.
    """

    path: str

    def faults(self) -> list[str]:
        try:
            self.function()
        except ConfigError as error:
            return [str(error)]
        return []

    def function(self) -> Function:
        """Raises `ConfigError` where there is no such function."""
        return imported(self.path, "reward.path")


@dataclass(frozen=True)
class CheckerReward:
    """1 for an answer that a checker of `dlm.evaluation.checkers` finds right, else 0.

    Attributes:
        checker: its name, such as `number` for GSM8K.
        answer_field: the row's field of the right answer; None for a checker that needs none.
    """

    checker: str
    answer_field: str | None = None

    def _checker(self) -> Checker:
        return checker_of(self.checker, Sandbox(), "reward.checker")

    def faults(self) -> list[str]:
        try:
            checker = self._checker()
        except ConfigError as error:
            return [str(error)]
        if checker.executes:
            return [
                f"reward.checker={self.checker} runs code; write a function with a sandbox of yours (reward=function)"
            ]
        if "answer" in checker.needs and self.answer_field is None:
            return ["reward.answer_field is not set: write reward.answer_field=<field of the right answer>"]
        return []

    def function(self) -> Function:
        checker, name = self._checker(), self.answer_field

        def reward(row: dict[str, Any], text: str) -> float:
            return float(checker.check(row, None if name is None else row[name], text).right)

        return reward


@dataclass
class Judge:
    """A reward that does not end a run: an answer that it raises on, or gives no finite number, is worth 0.

    Attributes:
        function: the reward.
        failures: answers that it could not judge.
        last: why, of the last of them.
    """

    function: Function
    failures: int = 0
    last: str = ""
    _told: set[str] = field(default_factory=set)

    def __call__(self, row: dict[str, Any], text: str) -> float:
        try:
            value = float(self.function(row, text))
            if not math.isfinite(value):
                raise ValueError(f"{value} is no finite number")
        except Exception as error:  # whatever a user's function raises
            self.failures += 1
            self.last = f"{type(error).__name__}: {error}"
            return 0.0
        return value

    def news(self) -> str | None:
        """The last failure, if none of its kind was told before."""
        kind = self.last.partition(":")[0]
        if not kind or kind in self._told:
            return None
        self._told.add(kind)
        return self.last
