"""The demo's tasks: questions whose answers a few lines of Python can check.

Each `Family` makes examples from a seeded `random.Random` and checks an answer from the texts of question and answer
alone. Where a question has many valid answers, any of them counts; the generator draws one at random, so that a model
trained on it learns the whole distribution, which is what breaks when dependent tokens are revealed together.

Knows neither tokens nor models. `python -m dlm.demo` writes the held-out prompts (`prompts.jsonl`).
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

from dlm.demo.words import ADJECTIVES, CAPITALS, CATEGORIES, ITEMS, NAMES, NOUNS, NUMBERS, PLACES, VERBS
from dlm.errors import ConfigError

TEST_SEED, TEST_PER_FAMILY = 20_000, 32
VALIDATION_SEED, VALIDATION_PER_FAMILY = 30_000, 16


@dataclass(frozen=True)
class Example:
    """One question, one of its valid answers, and what it was made from."""

    family: str
    question: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One kind of question.

    Attributes:
        name: the word before the dash in a prompt's id.
        many_valid: some questions have more than one valid answer.
        memorised: a closed list of facts; held-out questions then also occur in training.
        share: examples in each round of the training stream; more for what is learned slowly, and for the plain copying
            of words, which most families build on.
        make: draws `(question, answer, facts)`.
        check: whether an answer, stripped of surrounding white space, is entirely right.
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


def _parts(rng: random.Random, total: int, count: int) -> list[int]:
    """`count` positive numbers that sum to `total`, all choices alike."""
    cuts = sorted(rng.sample(range(1, total), count - 1))
    return [stop - start for start, stop in zip([0, *cuts], [*cuts, total], strict=True)]


def _make_split(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    total, (first, second), item = rng.randint(4, 20), rng.sample(NAMES, 2), rng.choice(ITEMS)
    a, b = _parts(rng, total, 2)
    question = f"Share {NUMBERS[total]} {item} between {first} and {second}."
    return question, f"{first} {NUMBERS[a]}, {second} {NUMBERS[b]}", {"total": total}


def _make_trio(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    total, names, item = rng.randint(6, 20), rng.sample(NAMES, 3), rng.choice(ITEMS)
    question = f"Share {NUMBERS[total]} {item} among {names[0]}, {names[1]} and {names[2]}."
    parts = _parts(rng, total, 3)
    return (
        question,
        ", ".join(f"{name} {NUMBERS[part]}" for name, part in zip(names, parts, strict=True)),
        {"total": total},
    )


def _check_shares(question: str, answer: str) -> bool:
    total, *names = re.findall(r"(?<=^Share )\w+|\b(?!Share)[A-Z]\w+", question)
    shares = re.fullmatch(", ".join(rf"{name} (\w+)" for name in names), answer)
    if shares is None or any(share not in NUMBERS[1:] for share in shares.groups()):
        return False
    return sum(map(NUMBERS.index, shares.groups())) == NUMBERS.index(total)


def _make_count(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    length = rng.randint(5, 19)
    start = rng.randint(1, 20 - length)
    words = NUMBERS[start : start + length + 1]
    way, ordered = ("up", words) if rng.random() < 0.5 else ("down", words[::-1])
    return f"Count {way} from {ordered[0]} to {ordered[-1]}.", " ".join(ordered), {"length": len(words)}


def _check_count(question: str, answer: str) -> bool:
    _, way, _, first, _, last = question.removesuffix(".").split(" ")
    low, high = sorted((NUMBERS.index(first), NUMBERS.index(last)))
    words = NUMBERS[low : high + 1]
    return answer == " ".join(words if way == "up" else words[::-1])


def _make_story(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    name, item, a, b = rng.choice(NAMES), rng.choice(ITEMS), rng.randint(1, 10), rng.randint(1, 10)
    if rng.random() < 0.5:
        question = f"{name} has {NUMBERS[a + b]} {item} and loses {NUMBERS[a]}. How many are left?"
        return question, f"{NUMBERS[a + b]} minus {NUMBERS[a]} is {NUMBERS[b]} {item}", {"sign": "-"}
    question = f"{name} has {NUMBERS[a]} {item} and finds {NUMBERS[b]}. How many in all?"
    return question, f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]} {item}", {"sign": "+"}


def _check_story(question: str, answer: str) -> bool:
    found = re.fullmatch(r"\w+ has (\w+) (\w+) and (loses|finds) (\w+)\. .*", question)
    if found is None:
        return False
    a, b, item = NUMBERS.index(found[1]), NUMBERS.index(found[4]), found[2]
    sign, result = ("minus", a - b) if found[3] == "loses" else ("plus", a + b)
    return answer == f"{found[1]} {sign} {found[4]} is {NUMBERS[result]} {item}"


def _make_sort(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    numbers = rng.sample(range(1, 10), rng.randint(4, 7))
    return f"Sort {' '.join(map(str, numbers))}.", " ".join(map(str, sorted(numbers))), {"length": len(numbers)}


def _check_sort(question: str, answer: str) -> bool:
    return answer == " ".join(map(str, sorted(map(int, re.findall(r"\d+", question)))))


def _make_reverse(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    words = rng.sample(NOUNS, rng.randint(3, 7))
    return f"Reverse: {' '.join(words)}", " ".join(reversed(words)), {"length": len(words)}


def _check_reverse(question: str, answer: str) -> bool:
    return answer == " ".join(reversed(question.removeprefix("Reverse: ").split()))


def _thing(rng: random.Random) -> str:
    return f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def _make_copy(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    clauses = [
        f"{rng.choice(NAMES)} {rng.choice(VERBS)} {_thing(rng)} {rng.choice(PLACES)} {_thing(rng)}"
        for _ in range(rng.randint(1, 3))
    ]
    sentence = f"{', and '.join(clauses)}."
    return f"Repeat: {sentence}", sentence, {"clauses": len(clauses)}


def _check_copy(question: str, answer: str) -> bool:
    return answer == question.removeprefix("Repeat: ")


def _make_alternate(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    category, length = rng.choice(list(CATEGORIES)), rng.randint(5, 20)
    first, second = rng.sample(CATEGORIES[category], 2)
    answer = " ".join((first, second)[index % 2] for index in range(length))
    return f"Alternate {first} and another {category}, {NUMBERS[length]} words.", answer, {"length": length}


def _check_alternate(question: str, answer: str) -> bool:
    found = re.fullmatch(r"Alternate (\w+) and another (\w+), (\w+) words\.", question)
    words = answer.split(" ")
    if found is None or len(words) != NUMBERS.index(found[3]):
        return False
    first, second = words[:2]
    fits = first == found[1] and second != first and second in CATEGORIES[found[2]]
    return fits and all(word == (first, second)[index % 2] for index, word in enumerate(words))


def _make_palindrome(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    length, start = rng.randint(5, 11), rng.randint(10, 99)
    half = str(start) + "".join(rng.choice("0123456789") for _ in range((length + 1) // 2 - 2))
    answer = half + half[: length // 2][::-1]
    return f"Write a palindrome of {NUMBERS[length]} digits that starts with {start}.", answer, {"length": length}


def _check_palindrome(question: str, answer: str) -> bool:
    length, start = question.split()[4], question.removesuffix(".").split()[-1]
    fits = re.fullmatch(r"[0-9]+", answer) is not None and len(answer) == NUMBERS.index(length)
    return fits and answer == answer[::-1] and answer.startswith(start)


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
    return "\n".join(cells[row : row + 4] for row in range(0, 16, 4))


def _make_sudoku(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    grid, givens = rng.choice(GRIDS), rng.randint(5, 10)
    shown = set(rng.sample(range(16), givens))
    puzzle = "".join(digit if cell in shown else "0" for cell, digit in enumerate(grid))
    return f"Fill the zeros of this sudoku:\n{_lines(puzzle)}", _lines(grid), {"givens": givens}


def _check_sudoku(question: str, answer: str) -> bool:
    puzzle = "".join(question.split("\n")[1:])
    cells = answer.replace("\n", "")
    fits = re.fullmatch(r"([1-4]{4}\n){3}[1-4]{4}", answer) is not None and _is_grid(cells)
    return fits and all(given in ("0", cell) for given, cell in zip(puzzle, cells, strict=True))


def _make_capital(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    country = rng.choice(list(CAPITALS))
    return f"What is the capital of {country}?", f"{CAPITALS[country]} is the capital of {country}.", {}


def _check_capital(question: str, answer: str) -> bool:
    country = question.removeprefix("What is the capital of ").removesuffix("?")
    return answer == f"{CAPITALS.get(country)} is the capital of {country}."


FAMILIES = {
    family.name: family
    for family in (
        Family("split", True, False, 2, _make_split, _check_shares),
        Family("trio", True, False, 3, _make_trio, _check_shares),
        Family("alternate", True, False, 2, _make_alternate, _check_alternate),
        Family("palindrome", True, False, 3, _make_palindrome, _check_palindrome),
        Family("sudoku", True, False, 4, _make_sudoku, _check_sudoku),
        Family("count", False, False, 2, _make_count, _check_count),
        Family("copy", False, False, 2, _make_copy, _check_copy),
        Family("story", False, False, 2, _make_story, _check_story),
        Family("sort", False, False, 3, _make_sort, _check_sort),
        Family("reverse", False, False, 3, _make_reverse, _check_reverse),
        Family("capital", False, True, 1, _make_capital, _check_capital),
    )
}


def check(family: str, prompt: str, answer: str) -> bool:
    """Whether `answer` is entirely right for `prompt`; white space around it is no part of it.

    Raises:
        ConfigError: there is no such family.
    """
    if family not in FAMILIES:
        raise ConfigError(f"demo family {family!r} does not exist; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[family].check(prompt, answer.strip())


def held_out(seed: int = TEST_SEED, per_family: int = TEST_PER_FAMILY) -> list[Example]:
    """`per_family` different questions of each family, the same on every machine; the test set without arguments."""
    examples = []
    for family in FAMILIES.values():
        rng = random.Random(f"{seed}-{family.name}")
        questions: set[str] = set()
        while len(questions) < per_family:
            example = family.example(rng)
            if example.question not in questions:
                questions.add(example.question)
                examples.append(example)
    return examples


def training_examples(seed: int) -> Iterator[Example]:
    """An endless stream over the families by their shares, without the questions of the test and validation sets.

    Memorised facts are the exception: they can only be known by having been seen.
    """
    rng = random.Random(seed)
    kept_back = [*held_out(), *held_out(VALIDATION_SEED, VALIDATION_PER_FAMILY)]
    excluded = {example.question for example in kept_back if not FAMILIES[example.family].memorised}
    for family in cycle([one for one in FAMILIES.values() for _ in range(one.share)]):
        example = family.example(rng)
        while example.question in excluded:
            example = family.example(rng)
        yield example


def write_prompts(path: Path) -> None:
    """Write the test set, one `{"id", "family", "prompt"}` a line."""
    counts = dict.fromkeys(FAMILIES, 0)
    with path.open("w", encoding="utf-8") as file:
        for example in held_out():
            row = {
                "id": f"{example.family}-{counts[example.family]:03d}",
                "family": example.family,
                "prompt": example.question,
            }
            counts[example.family] += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
