"""Lightning loggers as the programs use them: created once, given all of the run's metrics, and always closed.

The run folder is the record. A logger failure, for instance because W&B is unreachable, only loses that entry and never
the run: `attempt` prints it and the run continues.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from dlm.config.build import instantiate
from dlm.runs.run_folder import RunFolder
from dlm.runs.summary import read_predictions
from dlm.runs.totals import Totals

TABLE_ROWS = 200
"""Maximum answers in a logger's table; as many as its page can show."""

LONGEST_NAME = 128
"""Maximum characters in an artifact's name."""

FINISH_WITHIN = 120.0
"""Seconds for W&B's final upload, unless its own variable WANDB_FINISH_TIMEOUT is set; anything not uploaded stays on
disk for `wandb sync`."""


def attempt(what: str, action: Callable[[], object]) -> bool:
    """Run a logger action; on any failure, print a line to standard error and return False."""
    try:
        action()
    except Exception as error:  # W&B's own errors, its service's, and connection errors
        print(
            f"{what}: not logged, the run continues ({type(error).__name__}: {error}); all results are in its folder",
            file=sys.stderr,
        )
        return False
    return True


def build_logger(config: DictConfig, run_dir: Path, job_type: str = "predict") -> Logger | None:
    """The configured logger, writing inside the run folder; None for `logger=none`.

    Starts W&B. If it cannot be reached, its run is kept in the folder, as with `logger.offline=true`.

    Args:
        config: logged as the run's config; its `logger` part selects the logger.
        run_dir: the run folder.
        job_type: W&B job type.
    """
    chosen = config.logger
    if chosen.get("_target_") is None:
        return None
    if not chosen._target_.endswith("WandbLogger"):
        csv: Logger = instantiate(chosen, save_dir=str(run_dir), version="")
        return csv
    logger = _wandb_logger(config, run_dir, job_type, offline=chosen.offline)
    if attempt("W&B", lambda: logger.experiment) or chosen.offline:
        return logger
    print(f"W&B data is kept in {run_dir / 'wandb'}; upload it later with `wandb sync`", file=sys.stderr)
    logger = _wandb_logger(config, run_dir, job_type, offline=True)
    return logger if attempt("W&B", lambda: logger.experiment) else None


def _wandb_logger(config: DictConfig, run_dir: Path, job_type: str, *, offline: bool) -> WandbLogger:
    import wandb

    chosen = config.logger
    patience = float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_WITHIN))
    make = instantiate(
        chosen,
        _partial_=True,
        name=chosen.name or run_dir.name,
        tags=list(chosen.tags),
        offline=offline,
        save_dir=str(run_dir),
        job_type=job_type,
        settings=wandb.Settings(quiet=True, silent=True, console="off", finish_timeout=patience),
        # Lightning only sets this in the environment, which W&B may already have read.
        **({"mode": "offline"} if offline else {}),
    )
    # W&B's `config` bypasses Hydra's `instantiate`, which has an argument of the same name.
    logger: WandbLogger = make(config=OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    logger._wandb_init.pop("anonymous", None)  # Lightning always passes it, and W&B warns about any value
    return logger


def define_steps(logger: Logger) -> None:
    """Plot progress against the number of answers; Lightning's own step does not advance in predict."""
    if isinstance(logger, WandbLogger):
        logger.experiment.define_metric("progress/answers")
        logger.experiment.define_metric("progress/*", step_metric="progress/answers")


def log_progress(logger: Logger, totals: Totals) -> None:
    """Log one entry against the number of answers: `trainer/global_step` does not advance in predict."""
    reached = {
        "progress/answers": totals.rows,
        "progress/errors": totals.errors,
        "progress/tokens_per_second": totals.tokens_per_second,
        "progress/tokens_per_forward": totals.tokens_per_forward,
        "progress/occupancy": totals.occupancy,
    }
    if isinstance(logger, WandbLogger):
        logger.experiment.log(reached)
    else:
        logger.log_metrics(reached, step=totals.rows)


def log_summary(logger: Logger, figures: dict[str, Any], step: int, folder: RunFolder) -> None:
    """Log the final metrics; for W&B also some answers as a table and all shards as an artifact.

    Args:
        logger: the Lightning logger.
        figures: contents of `summary.json`.
        step: number of answers of this attempt.
        folder: the run folder.
    """
    found = {f"summary/{name}": value for name, value in _flat(figures)}
    if not isinstance(logger, WandbLogger):
        logger.log_metrics(found, step=step)
        logger.save()
        return
    import wandb

    run = logger.experiment
    run.summary.update(found)
    judged = read_predictions(folder.results) if folder.results.exists() else None
    run.log({"predictions": table_of(read_predictions(folder.predictions), judged)})
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"shards-{folder.path.name}")[:LONGEST_NAME]
    artifact = wandb.Artifact(name, type="predictions")
    for shard in folder.shard_files():
        artifact.add_file(str(shard), name=shard.name)
    run.log_artifact(artifact)


def _flat(values: dict[str, Any]) -> Iterable[tuple[str, float]]:
    """The numbers of a summary; `scores` as `exact_match/<family>`."""
    for name, value in values.items():
        if name == "scores":
            yield from ((f"exact_match/{family}", score) for family, score in value.items())
        elif isinstance(value, int | float):
            yield name, value


def table_of(rows: Iterable[dict[str, Any]], judged: Iterable[dict[str, Any]] | None = None) -> Any:
    """A `wandb.Table` of the first `TABLE_ROWS` predictions, with their evaluation results, if any."""
    import wandb

    found = ("right", "answer", "reference") if judged is not None else ()
    table = wandb.Table(columns=["id", "prompt", "text", "nfe", "error", *found])
    for row, result in zip(islice(rows, TABLE_ROWS), judged or repeat({}), strict=False):
        prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
        told = (row["id"], prompt, row.get("text"), row.get("nfe"), row.get("error", {}).get("message"))
        table.add_data(*told, *(result.get(name) for name in found))
    return table


def log_report(
    logger: Logger,
    totals: dict[str, float],
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    images: dict[str, Path],
    page: Path,
) -> None:
    """Log a report over several runs; for W&B also its table, plots and page.

    Args:
        logger: the Lightning logger.
        totals: the report's totals.
        columns, lines: the table.
        images: PNG files by name.
        page: the HTML file.
    """
    if not isinstance(logger, WandbLogger):
        logger.log_metrics(totals, step=0)
        logger.save()
        return
    import wandb

    run = logger.experiment
    run.summary.update(totals)
    table = wandb.Table(columns=list(columns), data=[list(line) for line in lines])
    plots = {f"report/{name}": wandb.Image(str(path)) for name, path in images.items()}
    run.log({"report/table": table, "report/page": wandb.Html(page.read_text(encoding="utf-8"), inject=False), **plots})


def finish(logger: Logger, code: int) -> None:
    """Close the logger in any case; `code` is the run's exit code."""
    attempt("the end of the run", lambda: _finish(logger, code))


def _finish(logger: Logger, code: int) -> None:
    if isinstance(logger, WandbLogger):
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=code)
        return
    logger.finalize("success" if code == 0 else "failed")
