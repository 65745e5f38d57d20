"""What a run has done, from its predictions: the table at its end, `summary.json` and the figures for the logger.

Knows no Lightning.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dlm.data.prompts import Check
from dlm.runs.totals import Totals, clock
from dlm.runs.whole_files import replace


@dataclass
class Summary:
    """Figures of a whole run.

    Attributes:
        prompts: rows of the predictions.
        errors: of them refused.
        nfe, tokens: summed over answers.
        right, checked: answers that are right, and that could be checked, by the groups of the data set's check.
    """

    prompts: int = 0
    errors: int = 0
    nfe: int = 0
    tokens: int = 0
    right: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)

    @property
    def answers(self) -> int:
        return self.prompts - self.errors

    @property
    def mean_nfe(self) -> float:
        return self.nfe / self.answers if self.answers else 0.0

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.nfe if self.nfe else 0.0

    @property
    def exact_match(self) -> float | None:
        """Share of the checkable answers that are right; None where none can be checked."""
        checked = self.checked.total()
        return self.right.total() / checked if checked else None


def summarize(predictions: Path, check: Check | None = None) -> Summary:
    """Read a run's predictions; answers are checked where the data set brought a `check`."""
    summary = Summary()
    for row in read_predictions(predictions):
        summary.prompts += 1
        if "error" in row:
            summary.errors += 1
            continue
        summary.nfe += row["nfe"]
        summary.tokens += len(row["token_ids"])
        if check is None:
            continue
        fields = row.get("row", {})
        verdict = check(fields, fields.get("prompt", row["prompt"]), row["text"])  # of a task: without its template
        if verdict is not None:
            group, right = verdict
            summary.checked[group] += 1
            summary.right[group] += right
    return summary


def figures(summary: Summary, totals: Totals) -> dict[str, Any]:
    """A run in numbers: what `summary.json` holds.

    `scores` are shares of right answers by group; `exact_match` is None where none can be checked, and the last
    four, which are of this attempt, where it wrote nothing.
    """
    wrote = totals.rows > 0
    return {
        "prompts": summary.prompts,
        "answers": summary.answers,
        "errors": summary.errors,
        "exact_match": summary.exact_match,
        "checked": summary.checked.total(),
        "scores": {family: summary.right[family] / count for family, count in sorted(summary.checked.items())},
        "mean_nfe": summary.mean_nfe,
        "tokens_per_forward": summary.tokens_per_forward,
        "tokens": totals.tokens if wrote else None,
        "seconds": totals.seconds if wrote else None,
        "tokens_per_second": totals.tokens_per_second if wrote else None,
        "occupancy": totals.occupancy if wrote else None,
    }


def write_summary(path: Path, summary: Summary, totals: Totals) -> None:
    """Keep the figures with the run. An attempt that had nothing left to do leaves the timings of the one before it.

    Raises:
        RunError: no room for them.
    """
    if totals.rows or not read_summary(path):
        replace(path, [json.dumps(figures(summary, totals), indent=2).encode() + b"\n"])


def read_summary(path: Path) -> dict[str, Any]:
    """The figures that were kept with a run; none where there are none, or they are damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_predictions(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def show(summary: Summary, totals: Totals, predictions: Path, trace: Path | None = None) -> None:
    """Print the table on standard output; `trace` is the page of how answers were revealed."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for family in sorted(summary.checked):
        share = summary.right[family] / summary.checked[family]
        table.add_row(f"exact match, {family}", f"{share:.3f}  ({summary.right[family]}/{summary.checked[family]})")
    if summary.exact_match is not None:
        done = f"({summary.right.total()}/{summary.checked.total()})"
        table.add_row("exact match, all", f"{summary.exact_match:.3f}  {done}")
    table.add_row("answers", f"{summary.answers}" + (f", and {summary.errors} errors" if summary.errors else ""))
    table.add_row("forwards an answer (NFE)", f"{summary.mean_nfe:.2f}")
    table.add_row("tokens a forward", f"{summary.tokens_per_forward:.2f}")
    if totals.rows:
        table.add_row(
            "visible tokens/s", f"{totals.tokens_per_second:.1f}  ({totals.tokens} in {clock(totals.seconds)})"
        )
        table.add_row("decoder occupancy", f"{totals.occupancy:.0%}")
    table.add_row("output", str(predictions))
    if trace is not None:
        table.add_row("revealed step by step", str(trace))
    # As wide as it needs to be: a path that is folded cannot be copied.
    Console(width=max(Console().width, 30 + len(str(predictions)))).print(table)
