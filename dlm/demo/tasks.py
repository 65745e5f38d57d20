"""The demo's tasks: questions whose answers a few lines of Python can check.

Each `TaskFamily` makes examples from a seeded `random.Random` and checks an answer from the texts of question and
answer alone. If a question has many valid answers, any of them counts; the generator draws one at random, so that a
model trained on it learns the whole distribution, which is what breaks when dependent tokens are revealed together.
Numbers are small, so that each is one token: sums written digit by digit are not learned in an hour on one core.

Independent of tokens and models. `python -m dlm.demo` writes the held-out prompts (`prompts.jsonl`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, permutations, product
from pathlib import Path
from typing import Any

from dlm.demo.words import CAPITALS, CATEGORIES, ITEMS, NOUNS
from dlm.errors import ConfigError

TEST_SEED, TEST_PER_FAMILY = 20_000, 46
VALIDATION_SEED, VALIDATION_PER_FAMILY = 30_000, 16


@dataclass(frozen=True)
class Example:
    """One question, one of its valid answers, and what it was made from."""

    family: str
    question: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskFamily:
    """One kind of question.

    Attributes:
        name: the word before the dash in a prompt's id.
        many_valid: some questions have more than one valid answer.
        memorised: a closed list of facts; held-out questions then also occur in training.
        share: examples in each round of the training stream; more for what is learned slowly.
        make: draws `(question, answer, facts)`.
        check: whether an answer, without surrounding whitespace, is fully correct.
    """

    name: str
    many_valid: bool
    memorised: bool
    share: int
    make: Callable[[random.Random], tuple[str, str, dict[str, Any]]]
    check: Callable[[str, str], bool]

    def example(self, rng: random.Random) -> Example:
        question, answer, facts = self.make(rng)
        return Example(self.name, question, answer, facts)


def _make_split(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    total, item = rng.randint(4, 20), rng.choice(ITEMS)
    a = rng.randint(1, total - 1)
    return f"Split {total} {item} into 2.", f"Parts: {a} + {total - a}", {"total": total}


def _check_split(question: str, answer: str) -> bool:
    total = int(question.split()[1])
    parts = re.fullmatch(r"Parts: ([1-9]\d*) \+ ([1-9]\d*)", answer)
    return parts is not None and int(parts[1]) + int(parts[2]) == total


def _make_add(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    a, b, item = rng.randint(1, 12), rng.randint(1, 12), rng.choice(ITEMS)
    return f"Add {a} and {b} {item}.", f"Sum: {a + b} {item}", {}


def _check_add(question: str, answer: str) -> bool:
    total, item = sum(map(int, re.findall(r"[0-9]+", question))), question.split()[-1].removesuffix(".")
    return answer == f"Sum: {total} {item}"


def _make_copy(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    words = [rng.choice(NOUNS) for _ in range(rng.randint(3, 6))]
    return f"Copy {' '.join(words)}.", "Copied: " + " ".join(words), {}


def _check_copy(question: str, answer: str) -> bool:
    return answer == "Copied: " + question.removeprefix("Copy ").removesuffix(".")


def _make_sort(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    numbers = rng.sample(range(1, 21), rng.randint(3, 4))
    return f"Sort {' '.join(map(str, numbers))}.", "Sorted: " + " ".join(map(str, sorted(numbers))), {}


def _check_sort(question: str, answer: str) -> bool:
    return answer == "Sorted: " + " ".join(map(str, sorted(map(int, re.findall(r"\d+", question)))))


def _make_reverse(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    words = rng.sample(NOUNS, rng.randint(3, 6))
    return f"Reverse {' '.join(words)}.", "Reversed: " + " ".join(reversed(words)), {}


def _check_reverse(question: str, answer: str) -> bool:
    words = question.removeprefix("Reverse ").removesuffix(".").split()
    return answer == "Reversed: " + " ".join(reversed(words))


def _make_pick(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    category, length = rng.choice(list(CATEGORIES)), rng.randint(2, 32)
    return f"Name one {category} {length} times.", "Words: " + " ".join([rng.choice(CATEGORIES[category])] * length), {}


def _check_pick(question: str, answer: str) -> bool:
    found = re.fullmatch(r"Name one (\w+) (\d+) times\.", question)
    if found is None or not answer.startswith("Words: "):
        return False
    words = answer.removeprefix("Words: ").split(" ")
    return len(words) == int(found[2]) and words[0] in CATEGORIES[found[1]] and len(set(words)) == 1


def _unit_cells() -> list[list[int]]:
    rows = [[4 * row + column for column in range(4)] for row in range(4)]
    columns = [[4 * row + column for row in range(4)] for column in range(4)]
    boxes = [[8 * i + 2 * j + k for k in (0, 1, 4, 5)] for i, j in product(range(2), repeat=2)]
    return rows + columns + boxes


UNITS = _unit_cells()


def _is_grid(cells: str) -> bool:
    return all(sorted(cells[cell] for cell in unit) == ["1", "2", "3", "4"] for unit in UNITS)


def _all_grids() -> list[str]:
    lines = ["".join(line) for line in permutations("1234")]
    tops = [a + b for a, b in product(lines, repeat=2) if len(set(a[:2] + b[:2])) == len(set(a[2:] + b[2:])) == 4]
    return [top + bottom for top, bottom in product(tops, repeat=2) if _is_grid(top + bottom)]


GRIDS = _all_grids()
"""The 288 finished 4x4 grids, each as 16 digits row by row."""


def _lines(cells: str) -> str:
    return "\n".join(" ".join(cells[row : row + 4]) for row in range(0, 16, 4))


def _make_sudoku(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    grid, givens = rng.choice(GRIDS), rng.randint(7, 12)
    shown = set(rng.sample(range(16), givens))
    puzzle = "".join(digit if cell in shown else "0" for cell, digit in enumerate(grid))
    return f"Fill the zeros:\n{_lines(puzzle)}", f"Grid:\n{_lines(grid)}", {"givens": givens}


def _check_sudoku(question: str, answer: str) -> bool:
    puzzle = "".join(re.findall(r"\d", question))
    cells = "".join(re.findall(r"\d", answer))
    fits = len(cells) == 16 and answer == f"Grid:\n{_lines(cells)}" and _is_grid(cells)
    return fits and all(given in ("0", cell) for given, cell in zip(puzzle, cells, strict=True))


def _make_capital(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    country = rng.choice(list(CAPITALS))
    return f"Capital of {country}?", f"Capital: {CAPITALS[country]}", {}


def _check_capital(question: str, answer: str) -> bool:
    country = question.removeprefix("Capital of ").removesuffix("?")
    return answer == f"Capital: {CAPITALS.get(country)}"


FAMILIES = {
    family.name: family
    for family in (
        TaskFamily("split", True, False, 3, _make_split, _check_split),
        TaskFamily("pick", True, False, 1, _make_pick, _check_pick),
        TaskFamily("sudoku", True, False, 5, _make_sudoku, _check_sudoku),
        TaskFamily("add", False, False, 1, _make_add, _check_add),
        TaskFamily("copy", False, False, 1, _make_copy, _check_copy),
        TaskFamily("sort", False, False, 1, _make_sort, _check_sort),
        TaskFamily("reverse", False, False, 1, _make_reverse, _check_reverse),
        TaskFamily("capital", False, True, 1, _make_capital, _check_capital),
    )
}


def check(family: str, prompt: str, answer: str) -> bool:
    """Whether `answer` is fully correct for `prompt`, ignoring surrounding whitespace.

    Raises:
        ConfigError: there is no such family.
    """
    if family not in FAMILIES:
        raise ConfigError(f"demo family {family!r} does not exist; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[family].check(prompt, answer.strip())


def held_out(seed: int = TEST_SEED, per_family: int = TEST_PER_FAMILY) -> list[Example]:
    """Distinct questions of each family, the same on every machine; by default the test set.

    `per_family` of each, half as many of a memorised one: those are seen in training, so they show less.
    """
    examples = []
    for family in FAMILIES.values():
        rng = random.Random(f"{seed}-{family.name}")
        questions: set[str] = set()
        while len(questions) < (per_family // 2 if family.memorised else per_family):
            example = family.example(rng)
            if example.question not in questions:
                questions.add(example.question)
                examples.append(example)
    return examples


def _kept_back() -> set[str]:
    """Questions of the test and validation sets, without memorised facts: those can only be known from training."""
    examples = [*held_out(), *held_out(VALIDATION_SEED, VALIDATION_PER_FAMILY)]
    return {example.question for example in examples if not FAMILIES[example.family].memorised}


def fresh_examples(family: str, seed: int, count: int) -> list[Example]:
    """`count` distinct questions of a family, none of them in the test and validation sets.

    Raises:
        ConfigError: there is no such family, or it has too few questions.
    """
    if family not in FAMILIES:
        raise ConfigError(f"demo family {family!r} does not exist; choose one of {', '.join(FAMILIES)}")
    rng, seen, found = random.Random(f"fresh-{seed}-{family}"), _kept_back(), []
    for _ in range(200 * count):
        example = FAMILIES[family].example(rng)
        if example.question not in seen:
            seen.add(example.question)
            found.append(example)
        if len(found) == count:
            return found
    raise ConfigError(f"the demo's family {family} has {len(found)} new questions, not {count}; ask for fewer")


def training_examples(seed: int) -> Iterator[Example]:
    """An endless stream over the families by their shares, excluding questions of the test and validation sets."""
    rng, excluded = random.Random(seed), _kept_back()
    for family in cycle([one for one in FAMILIES.values() for _ in range(one.share)]):
        example = family.example(rng)
        while example.question in excluded:
            example = family.example(rng)
        yield example


def write_prompts(path: Path) -> None:
    """Write the test set, one `{"id", "family", "prompt"}` per line."""
    counts = dict.fromkeys(FAMILIES, 0)
    with path.open("w", encoding="utf-8") as file:
        for example in held_out():
            name = f"{example.family}-{counts[example.family]:03d}"
            row = {"id": name, "family": example.family, "prompt": example.question}
            counts[example.family] += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
