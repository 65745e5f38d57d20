"""Chooses each step's prompts from the seed and the step alone, so that a resumed run uses the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from dlm.data.prompts import Prompt
from dlm.errors import ConfigError, DataError, RequestError
from dlm.text import TextCodec


@dataclass(frozen=True)
class TrainingPrompt:
    """A prompt to roll out.

    Attributes:
        id: stable name, from which its seeds are derived.
        row: the data row, including the prompt as `prompt`.
        token_ids: the prompt, formatted with the chat template if there is one.
        turn: number of completed passes over all questions.
    """

    id: str
    row: dict[str, Any]
    token_ids: tuple[int, ...]
    turn: int = 0


@dataclass(frozen=True)
class Step:
    """One process's share of a step.

    Attributes:
        number: step number, from 1.
        questions: this process's questions.
    """

    number: int
    questions: Sequence[TrainingPrompt]


def questions_of(
    prompts: Sequence[Prompt], codec: TextCodec, needs: Sequence[str], positions: int
) -> list[TrainingPrompt]:
    """Encode prompts.

    Args:
        prompts: rows of the data.
        codec: encodes them.
        needs: fields that each row must have, not null.
        positions: the model's maximum positions.

    Raises:
        DataError: a row cannot be used; bad training rows must be fixed, not skipped.
    """
    faults = [(prompt.id, prompt.fault.message) for prompt in prompts if prompt.fault is not None]
    rows = [{**prompt.row, "prompt": prompt.content} for prompt in prompts]
    if not faults:
        lacking = [(prompt.id, _lack_of(row, needs)) for prompt, row in zip(prompts, rows, strict=True)]
        faults = [(name, fault) for name, fault in lacking if fault is not None]
    refuse(faults)
    questions = []
    for prompt, row in zip(prompts, rows, strict=True):
        try:
            codec.check_fits(prompt.content, positions)
            questions.append(TrainingPrompt(prompt.id, row, codec.encode(prompt.content)))
        except RequestError as error:
            refuse([(prompt.id, str(error))])
    return questions


def refuse(faults: Sequence[tuple[str, str]]) -> None:
    """Raise `DataError` naming the first faulty row and its fault, if there are any."""
    if faults:
        (name, fault), others = faults[0], len(faults) - 1
        more = f" (and {others} more)" if others else ""
        raise DataError(f"row {name}: {fault}{more}; fix it, or leave it out")


def _lack_of(row: Mapping[str, Any], needs: Sequence[str]) -> str | None:
    """Describe the first needed field that is missing or null; None if the row has them all."""
    missing = next((need for need in needs if row.get(need) is None), None)
    if missing is None:
        return None
    return f"field {missing!r} is null" if missing in row else f"no field {missing!r}"


@dataclass(frozen=True)
class PromptSampler:
    """Questions to train on, reshuffled on each pass, and held-out ones for validation.

    Attributes:
        questions: all questions.
        held_out: number of questions at the end reserved for validation.
        per_step: questions per step, over all processes.
        seed: shuffle seed.

    Raises:
        ConfigError: too few questions are left to train on.
    """

    questions: Sequence[TrainingPrompt]
    held_out: int
    per_step: int
    seed: int

    def __post_init__(self) -> None:
        left = len(self.questions) - self.held_out
        if left < self.per_step:
            raise ConfigError(
                f"{len(self.questions)} prompts without validation.prompts={self.held_out} leave {left}, fewer than "
                f"prompts_per_step={self.per_step}; give more prompts, or lower one of them"
            )

    @cached_property
    def training(self) -> Sequence[TrainingPrompt]:
        return self.questions[: len(self.questions) - self.held_out]

    @cached_property
    def validation(self) -> Sequence[TrainingPrompt]:
        return self.questions[len(self.questions) - self.held_out :]

    def of_step(self, number: int) -> list[TrainingPrompt]:
        """The questions of step `number`, from 1."""
        first, size = (number - 1) * self.per_step, len(self.training)
        places = [divmod(place, size) for place in range(first, first + self.per_step)]
        return [replace(self.training[self._order(turn)[place]], turn=turn) for turn, place in places]

    def _order(self, turn: int) -> Sequence[int]:
        if turn not in self._orders:
            self._orders.clear()
            self._orders[turn] = np.random.default_rng([self.seed, turn]).permutation(len(self.training)).tolist()
        return self._orders[turn]

    @cached_property
    def _orders(self) -> dict[int, list[int]]:
        return {}


class Steps(IterableDataset[Step]):
    """The steps of one process.

    Args:
        curriculum: provides the questions.
        first, last: first and last step, inclusive.
        rank, world: this process's rank and the number of processes; each takes every `world`-th question.
    """

    def __init__(self, curriculum: PromptSampler, first: int, last: int, rank: int, world: int) -> None:
        self.curriculum, self.first, self.last, self.rank, self.world = curriculum, first, last, rank, world

    def __iter__(self) -> Iterator[Step]:
        for number in range(self.first, self.last + 1):
            yield Step(number, self.curriculum.of_step(number)[self.rank :: self.world])
