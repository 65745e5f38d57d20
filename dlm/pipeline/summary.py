"""What a run has done, from its predictions: the table at its end and the figures for the logger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from rich.console import Console
from rich.table import Table

from dlm.demo import check
from dlm.demo.tasks import FAMILIES
from dlm.pipeline.progress import Totals, clock

TABLE_ROWS = 200
"""Answers in a logger's table: what a page of it can show."""


@dataclass
class Summary:
    """Figures of a whole run.

    Attributes:
        prompts: rows of the predictions.
        errors: of them refused.
        nfe, tokens: summed over answers.
        right, checked: answers by family that are right, and that could be checked.
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


def summarize(predictions: Path) -> Summary:
    """Read a run's predictions."""
    summary = Summary()
    for row in read_predictions(predictions):
        summary.prompts += 1
        if "error" in row:
            summary.errors += 1
            continue
        summary.nfe += row["nfe"]
        summary.tokens += len(row["token_ids"])
        family = row.get("row", {}).get("family")
        if family in FAMILIES and isinstance(row["prompt"], str):
            summary.checked[family] += 1
            summary.right[family] += check(family, row["prompt"], row["text"])
    return summary


def read_predictions(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def show(summary: Summary, totals: Totals, predictions: Path) -> None:
    """Print the table on standard output."""
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
    # As wide as it needs to be: a path that is folded cannot be copied.
    Console(width=max(Console().width, 30 + len(str(predictions)))).print(table)


def log_summary(logger: Logger, summary: Summary, totals: Totals, predictions: Path, shards: Path) -> None:
    """Final figures to a Lightning logger; to W&B also some answers as a table and all shards as an artifact."""
    figures: dict[str, float] = {
        "summary/answers": summary.answers,
        "summary/errors": summary.errors,
        "summary/mean_nfe": summary.mean_nfe,
        "summary/tokens_per_forward": summary.tokens_per_forward,
        "summary/tokens_per_second": totals.tokens_per_second,
        "summary/occupancy": totals.occupancy,
    }
    if summary.exact_match is not None:
        figures["summary/exact_match"] = summary.exact_match
    for family, checked in summary.checked.items():
        figures[f"summary/exact_match/{family}"] = summary.right[family] / checked
    if not isinstance(logger, WandbLogger):
        logger.log_metrics(figures, step=totals.rows)
        logger.save()
        return
    import wandb

    run = logger.experiment
    run.summary.update(figures)
    table = wandb.Table(columns=["id", "prompt", "text", "nfe", "error"])
    for row, _ in zip(read_predictions(predictions), range(TABLE_ROWS), strict=False):
        prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
        reason = row.get("error", {}).get("message")
        table.add_data(row["id"], prompt, row.get("text"), row.get("nfe"), reason)
    run.log({"predictions": table})
    artifact = wandb.Artifact(f"shards-{predictions.parent.name}", type="predictions")
    artifact.add_dir(str(shards))
    run.log_artifact(artifact)
