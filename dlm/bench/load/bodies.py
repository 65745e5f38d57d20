"""Request bodies of chat completions, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from dlm.bench.load.config import DEFAULT, LoadConfig
from dlm.data.prompts import JsonlPrompts
from dlm.demo.words import ITEMS, NOUNS
from dlm.errors import DataError

GSM8K_WORDS = (47, 65, 39, 31, 44, 34, 36, 51, 59, 42, 54, 28, 15, 77, 164, 25)
"""Word counts of GSM8K's 1,319 test questions, mean 46: sixteen evenly spaced quantiles, including the shortest and the
longest; shuffled."""

WORDS = (*ITEMS, *NOUNS)


def read_prompts(work: LoadConfig) -> list[str | list[dict[str, str]]]:
    """The prompts in the workload's file; none if no file is set. Raises `DataError`."""
    if work.prompts is None:
        return []
    rows = JsonlPrompts(work.prompts, prompt_field=work.prompt_field).read("workload.prompts")
    faulty = next((row for row in rows if row.fault is not None), None)
    if faulty is not None and faulty.fault is not None:
        raise DataError(f"workload.prompts={work.prompts}, {faulty.id}: {faulty.fault.message}")
    return [row.content for row in rows]


def bodies(
    work: LoadConfig, prompts: Sequence[str | list[dict[str, str]]], algorithms: Sequence[str], row: int, turn: int
) -> list[dict[str, Any]]:
    """The `work.requests` bodies of one round, the same on every call.

    Args:
        work: what to draw from.
        prompts: from `read_prompts`.
        algorithms: names, or `default`.
        row, turn: indices of the table row and of its round.
    """
    draw = random.Random(f"{work.seed}/{row}/{turn}")
    return [_body(work, prompts, algorithms, draw, turn * work.requests + number) for number in range(work.requests)]


def _body(
    work: LoadConfig,
    prompts: Sequence[str | list[dict[str, str]]],
    algorithms: Sequence[str],
    draw: random.Random,
    number: int,
) -> dict[str, Any]:
    content = prompts[number % len(prompts)] if prompts else _words(GSM8K_WORDS[number % len(GSM8K_WORDS)], draw)
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": draw.choice(work.max_tokens),
        "temperature": draw.choice(work.temperatures),
        "n": draw.choice(work.n),
        "seed": draw.randrange(2**32),
        **work.fields,
    }
    algorithm = draw.choice(algorithms)
    if algorithm != DEFAULT:
        body["generation_algorithm"] = algorithm
    if draw.random() < work.streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _words(count: int, draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count)) + "?"


def arrivals(rate: float, burst: float, count: int, draw: random.Random) -> list[float]:
    """Seconds from the start at which `count` requests are due.

    Groups arrive as a Poisson process; their sizes are geometric with mean `burst`, so that `rate` requests arrive per
    second on average. With `burst` 1 each group is one request.
    """
    due: list[float] = []
    now = 0.0
    while len(due) < count:
        now += draw.expovariate(rate / burst)
        due.append(now)
        while len(due) < count and draw.random() >= 1 / burst:
            due.append(now)
    return due
