"""A folder of runs as a table and plots: `python -m dlm.report runs=folder` (see `--help`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from dlm import command_line
from dlm.errors import ConfigError, MissingExtraError
from dlm.report.config import register

if TYPE_CHECKING:
    from dlm.report.page import Report
    from dlm.report.runs import Run

TITLE = "Turn a folder of runs into a table and plots, as PNG and HTML, and log them."
KEYS = """\
  runs=folder                              runs of predict or evaluate, at whatever depth
  output=folder                            where the report goes; without it runs/report
  logger=none                              keep it in that folder alone
  logger.offline=false                     upload it to W&B, with WANDB_API_KEY from the environment"""
EXAMPLES = """\
  python -m dlm.report runs=outputs/predict
  python -m dlm.report runs=outputs/sweep output=outputs/sweep_report logger=none"""
WIDTH = 160
"""Columns of the table where the output is no terminal."""
NARROWEST = 110
"""And on a terminal that has fewer: a line goes on below rather than without a run's name."""


def main() -> None:
    register()
    command_line.main("report", "dlm.report", run, TITLE, KEYS, EXAMPLES)


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Write the report that `config` asks for; returns the exit code."""
    if OmegaConf.is_missing(config, "runs"):
        raise ConfigError("runs is not set: write runs=<folder>")
    from rich.console import Console

    from dlm.report.runs import read_runs
    from dlm.report.table import front_area, in_words

    folder = Path(config.runs)
    runs = read_runs(folder)
    try:
        from dlm.report.page import write_report
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "report", "python -m dlm.report") from error
    report = write_report(runs, Path(config.output or folder / "report"), str(folder))
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH if not console.is_terminal else NARROWEST)
    console.print(in_words(runs))
    area = front_area([run for run in runs if run.whole])
    if area is not None:
        console.print(f"area of the Pareto front: {area:.3f} tokens per forward")
    for one in runs:
        for reason in one.missing:
            print(f"{one.label}: {reason}", file=sys.stderr)
    _log(config, runs, report)
    print(report.page)
    return 0


def _log(config: DictConfig, runs: list[Run], report: Report) -> None:
    """The report to the chosen logger; Lightning comes with it, and only then."""
    if config.logger.get("_target_") is None:
        return
    from dlm.pipeline.loggers import attempt, build_logger, finish, log_report
    from dlm.report.table import COLUMNS, cells, totals

    logger = build_logger(config, report.page.parent, job_type="report")
    if logger is None:
        return
    try:
        attempt(
            "the report",
            lambda: log_report(logger, totals(runs), COLUMNS, cells(runs), report.images, report.page),
        )
    finally:
        finish(logger, 0)


if __name__ == "__main__":
    main()
