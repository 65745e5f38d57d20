"""A folder of runs as a table and plots: `python -m dlm.report runs=folder` (see `--help`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from dlm.cli import command_line
from dlm.errors import ConfigError, MissingExtraError
from dlm.report.config import register

if TYPE_CHECKING:
    from dlm.report.page import Content, Report

TITLE = "Turn a folder of runs into a table and plots, as PNG and HTML, and log them."
KEYS = """\
  runs=folder                              runs of predict, evaluate or rl.grpo, at any depth
  output=folder                            where to write the report; default: report/ in runs
  logger=none                              write it only to that folder
  logger.offline=false                     upload it to W&B, with WANDB_API_KEY from the environment"""
EXAMPLES = """\
  python -m dlm.report runs=outputs/predict
  python -m dlm.report runs=outputs/grpo
  python -m dlm.report runs=outputs/sweep output=outputs/sweep_report logger=none"""
WIDTH = 160
"""Table width in columns when not on a terminal."""
NARROWEST = 110
"""Least table width on a terminal: a narrower one wraps lines rather than lose a run's name."""


def main() -> None:
    command_line.main("report", "dlm.report", run, TITLE, KEYS, EXAMPLES, register)


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Write the configured report; returns the exit code."""
    if OmegaConf.is_missing(config, "runs"):
        raise ConfigError("runs is not set; add runs=<folder>")
    from rich.console import Console

    from dlm.report.table import in_words

    folder = Path(config.runs)
    output = Path(config.output or folder / "report")
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH if not console.is_terminal else NARROWEST)
    try:
        reports = list(_reports(folder, output))
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "report", "python -m dlm.report") from error
    for content, totals, report in reports:
        console.print(in_words(content.columns, content.lines))
        if content.area is not None:
            console.print(f"area of the Pareto front: {content.area:.3f} tokens per forward")
        for label, reasons in content.missing:
            for reason in reasons:
                print(f"{label}: {reason}", file=sys.stderr)
        _log(config, content, totals, report)
        print(report.page)
    return 0


def _reports(folder: Path, output: Path) -> Iterator[tuple[Content, dict[str, float], Report]]:
    """Write the report on a folder's trainings and the one on its other runs, at least one. Raises `RunError`."""
    from dlm.report import table, trainings
    from dlm.report.page import content_of, write
    from dlm.report.runs import is_training, read_runs, run_folders
    from dlm.report.training_page import content_of_trainings

    found = trainings.read_trainings(folder)
    if found:
        content = content_of_trainings(found, str(folder))
        yield content, trainings.totals(found), write(content, output, "training.html")
    if not found or not all(map(is_training, run_folders(folder))):
        runs = read_runs(folder)
        content = content_of(runs, str(folder))
        yield content, table.totals(runs), write(content, output, "report.html")


def _log(config: DictConfig, content: Content, totals: dict[str, float], report: Report) -> None:
    """Send the report to the chosen logger, if any; only then is Lightning imported."""
    if config.logger.get("_target_") is None:
        return
    from dlm.pipeline.loggers import attempt, build_logger, finish, log_report

    logger = build_logger(config, report.page.parent, job_type="report")
    if logger is None:
        return
    try:
        attempt(
            "the report",
            lambda: log_report(logger, totals, content.columns, content.lines, report.images, report.page),
        )
    finally:
        finish(logger, 0)


if __name__ == "__main__":
    main()
