"""Worked examples before a question, and questions put into words by a template."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlm.data.prompts import Messages
from dlm.errors import DataError

FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


def filled(template: str, row: dict[str, Any]) -> str:
    """`template` with each `{field}` replaced by that of `row`; the parts of a list in lines. Other braces stay.

    Raises:
        DataError: the row has no such field.
    """

    def field(match: re.Match[str]) -> str:
        if row.get(match[1]) is None:
            raise DataError(f"no field {match[1]!r}, which the template {template!r} names")
        content = row[match[1]]
        return "\n".join(map(str, content)) if isinstance(content, list) else str(content)

    return FIELD.sub(field, template)


@dataclass(frozen=True)
class Shots:
    """Examples to choose from.

    Attributes:
        examples: rows, each with its question as `prompt`.
        count: how many stand before a question.
        seed: draws them for each question, from this and the question's id; None takes the first ones.
        template, answer: how a question and its answer are put.
        as_turns: examples are turns of a conversation; else one text.
    """

    examples: Sequence[dict[str, Any]]
    count: int
    seed: int | None
    template: str
    answer: str
    as_turns: bool

    def ask(self, id: str, row: dict[str, Any]) -> str | Messages:
        """The question of a row behind its examples, of which none is the question itself.

        Raises:
            DataError: too few examples, or a field is missing.
        """
        question = filled(self.template, row)
        if not self.count:
            return question
        others = [one for one in self.examples if one["prompt"] != row["prompt"]]
        if len(others) < self.count:
            raise DataError(f"{len(others)} examples for task.num_shots={self.count}; give more, or ask for fewer")
        chosen = others[: self.count]
        if self.seed is not None:
            chosen = random.Random(f"{self.seed}:{id}").sample(others, self.count)
        pairs = [(filled(self.template, one), filled(self.answer, one)) for one in chosen]
        if not self.as_turns:
            return "\n\n".join([*(asked + answered for asked, answered in pairs), question])
        turns: Messages = []
        for asked, answered in pairs:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered.strip()}]
        return [*turns, {"role": "user", "content": question}]
