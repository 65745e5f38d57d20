"""Rewards: a reward scores an answer from the prompt's data row and the answer's text.

To add one: `reward=function reward.path=package.module:function`, a function that takes the row (a dict that includes
the prompt as `prompt`) and the text and returns a number; or `reward=checker` with the checker of an evaluation task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dlm.errors import ConfigError, RunError
from dlm.evaluation.graders.checkers import Checker, checker_of, imported
from dlm.evaluation.sandbox.run import Sandbox

Function = Callable[[dict[str, Any], str], float]


class Reward(Protocol):
    """Built from `conf/reward/`."""

    @property
    def needs(self) -> Sequence[str]:
        """Fields that every row must have."""

    def faults(self) -> list[str]:
        """Invalid settings, each with its key and remedy."""

    def function(self) -> Function:
        """The function of a row and an answer's text."""


@dataclass(frozen=True)
class FunctionReward:
    """A user-supplied function.

    Attributes:
        path: `package.module:function`.
    """

    path: str

    @property
    def needs(self) -> Sequence[str]:
        return ()

    def faults(self) -> list[str]:
        try:
            self.function()
        except ConfigError as error:
            return [str(error)]
        return []

    def function(self) -> Function:
        """Raises `ConfigError` if there is no such function."""
        return imported(self.path, "reward.path")


@dataclass(frozen=True)
class CheckerReward:
    """1 for an answer that a checker of `dlm.evaluation.graders.checkers` accepts, else 0.

    Attributes:
        checker: checker name, such as `number` for GSM8K.
        answer_field: row field with the correct answer; None if the checker needs none.
    """

    checker: str
    answer_field: str | None = None

    @property
    def needs(self) -> Sequence[str]:
        """The checker's fields, and `answer_field` if set. Raises `ConfigError` if there is no such checker."""
        needs = [self.answer_field if need == "answer" else need for need in (*self._checker().needs, "answer")]
        return tuple(dict.fromkeys(need for need in needs if need is not None))

    def _checker(self) -> Checker:
        return checker_of(self.checker, Sandbox(), "reward.checker")

    def faults(self) -> list[str]:
        try:
            checker = self._checker()
        except ConfigError as error:
            return [str(error)]
        if checker.executes:
            return [f"reward.checker={self.checker} runs code; use reward=function with your own sandbox"]
        if "answer" in checker.needs and self.answer_field is None:
            return ["reward.answer_field is not set: write reward.answer_field=<field of the right answer>"]
        return []

    def function(self) -> Function:
        checker, name = self._checker(), self.answer_field

        def reward(row: dict[str, Any], text: str) -> float:
            return float(checker.check(row, None if name is None else row[name], text).right)

        return reward


@dataclass(frozen=True)
class RewardVerdict:
    """An answer's reward, and why it could not be judged, if so (the reward is then 0)."""

    reward: float
    failure: str | None = None


class RewardRunner:
    """Runs a reward function, tolerating answers on which it raises or returns a non-finite number. A reward that has
    failed on every answer so far ends the run: the reward itself is broken.

    Args:
        function: the reward.
    """

    def __init__(self, function: Function) -> None:
        self.function, self._works, self._told = function, False, set[str]()

    def __call__(self, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[RewardVerdict]:
        """Judge answers.

        Raises:
            RunError: neither these answers nor any before could be judged.
        """
        verdicts = [self._judged(row, text) for row, text in zip(rows, texts, strict=True)]
        self._works = self._works or any(verdict.failure is None for verdict in verdicts)
        if verdicts and not self._works:
            raise RunError(f"the reward failed on all of the first {len(verdicts)} answers: {verdicts[0].failure}")
        return verdicts

    def _judged(self, row: dict[str, Any], text: str) -> RewardVerdict:
        try:
            value = float(self.function(row, text))
            if not math.isfinite(value):
                raise ValueError(f"{value} is not a finite number")
        except Exception as error:  # whatever a user's function raises
            failure = f"{type(error).__name__}: {error}"
            kind = type(error).__name__
            if kind not in self._told:
                self._told.add(kind)
                print(f"the reward failed on an answer, which scores 0: {failure}", flush=True)
            return RewardVerdict(0.0, failure)
        return RewardVerdict(value)
