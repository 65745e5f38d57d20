"""The table of runs: for a terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from dlm.report.pareto import area, front, interval
from dlm.report.runs import Run

COLUMNS = ("run", "accuracy", "95 %", "answers", "errors", "NFE", "tokens/forward", "tokens/s", "front")
"""Column headers; `front` marks the runs that no other beats."""


def on_front(runs: Sequence[Run]) -> list[Run]:
    """The runs that no other beats in accuracy and tokens per forward, slow to fast; equal runs are all included."""
    placed = comparable(runs)
    places = [point(run) for run in placed]
    return [run for index in front(places) for run in placed if point(run) == places[index]]


def front_area(runs: Sequence[Run]) -> float | None:
    """The area under their front, in tokens per forward; None if no run is comparable."""
    placed = comparable(runs)
    return area([point(run) for run in placed]) if placed else None


def totals(runs: Sequence[Run]) -> dict[str, float]:
    """The report in numbers, for a logger."""
    finished = [run for run in runs if run.whole]
    found = {"report/runs": float(len(runs)), "report/unfinished": float(len(runs) - len(finished))}
    dominated = front_area(finished)
    return found if dominated is None else {**found, "report/front_area": dominated}


def comparable(runs: Sequence[Run]) -> list[Run]:
    """The runs whose accuracy and tokens per forward are known."""
    return [run for run in runs if run.figures.accuracy is not None and run.figures.tokens_per_forward is not None]


def point(run: Run) -> tuple[float, float]:
    """Tokens per forward and accuracy of a comparable run."""
    speed, accuracy = run.figures.tokens_per_forward, run.figures.accuracy
    assert speed is not None  # it is comparable
    assert accuracy is not None  # it is comparable
    return speed, accuracy


def cells(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """A row of strings for each whole run, in the order of `COLUMNS`; empty if a value is unknown."""
    best = {run.label for run in on_front(runs)}
    return [
        (
            run.label,
            _number(run.figures.accuracy, ".3f"),
            _bounds(run),
            _number(run.figures.answers, "d"),
            _number(run.figures.errors, "d"),
            _number(run.figures.mean_nfe, ".2f"),
            _number(run.figures.tokens_per_forward, ".2f"),
            _number(run.figures.tokens_per_second, ".1f"),
            "yes" if run.label in best else "",
        )
        for run in runs
        if run.whole
    ]


def in_words(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """For a terminal."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=name != "run", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def as_csv(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """For a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def as_json(runs: Sequence[Run]) -> str:
    """For programs: every run with its figures and what it lacks, the front and its area."""
    values: dict[str, Any] = {
        "runs": [
            {
                "run": run.label,
                "folder": str(run.folder),
                "overrides": run.overrides,
                "whole": run.whole,
                "missing": run.missing,
                **asdict(run.figures),
            }
            for run in runs
        ],
        "front": [run.label for run in on_front(runs)],
        "front_area": front_area(runs),
    }
    return json.dumps(values, indent=2, allow_nan=False)


def _bounds(run: Run) -> str:
    if run.figures.accuracy is None or not run.figures.checked:
        return ""
    low, high = interval(run.figures.accuracy, run.figures.checked)
    return f"{low:.3f}-{high:.3f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
