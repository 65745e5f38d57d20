"""Lightning loggers as the programs use them: made once, told everything about the run, and always finished.

The run folder is the record. A logger that fails, because W&B or the way to it is out, costs what it would have been
told and never the run: `attempt` says so and goes on.
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
"""Answers in a logger's table: what a page of it can show."""

LONGEST_NAME = 128
"""Characters of an artifact's name."""

FINISH_WITHIN = 120.0
"""Seconds that W&B gets at the end to upload what is left, unless its own variable WANDB_FINISH_TIMEOUT says otherwise;
what it did not upload stays on the disk, for `wandb sync`."""


def attempt(what: str, action: Callable[[], object]) -> bool:
    """Tell a logger something; False, with a line on standard error, when that fails, however it fails."""
    try:
        action()
    except Exception as error:  # W&B's own errors, those of its service and of the connection to it
        print(
            f"{what}: not logged, and the run goes on ({type(error).__name__}: {error}); its folder is the record",
            file=sys.stderr,
        )
        return False
    return True


def build_logger(config: DictConfig, run_dir: Path, job_type: str = "predict") -> Logger | None:
    """The chosen logger, writing inside the run's folder; None for `logger=none`.

    W&B is started here. Where it cannot be reached its run is kept in the folder, as with `logger.offline=true`.

    Args:
        config: what is logged as the run's configuration; its `logger` part says where to.
        run_dir: the run's folder.
        job_type: what kind of run it is, in W&B.
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
    print(f"W&B is kept in {run_dir / 'wandb'}: `wandb sync` uploads it later", file=sys.stderr)
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
        # Lightning says so to the environment, which W&B may have read already.
        **({"mode": "offline"} if offline else {}),
    )
    # W&B's `config` goes past Hydra's `instantiate`, which has an argument of that name.
    logger: WandbLogger = make(config=OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    logger._wandb_init.pop("anonymous", None)  # Lightning always passes it on, and W&B warns of it whatever it is
    return logger


def define_steps(logger: Logger) -> None:
    """Plot progress against the number of answers; Lightning's own step stands still in predict."""
    if isinstance(logger, WandbLogger):
        logger.experiment.define_metric("progress/answers")
        logger.experiment.define_metric("progress/*", step_metric="progress/answers")


def log_progress(logger: Logger, totals: Totals) -> None:
    """One entry in a Lightning logger, against the number of answers: `trainer/global_step` stands still in predict."""
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
    """Final figures to a Lightning logger; to W&B also some answers as a table and all shards as an artifact.

    Args:
        logger: where to.
        figures: what `summary.json` holds.
        step: answers of this attempt.
        folder: the run.
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
    """A `wandb.Table` of the first `TABLE_ROWS` rows of predictions, with what an evaluation's results say of each."""
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
    """A report over several runs; to W&B its table, its plots and its page as well.

    Args:
        logger: where to.
        totals: the report in numbers.
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
    """Close the logger, whatever happened; `code` is the exit code of the run."""
    attempt("the end of the run", lambda: _finish(logger, code))


def _finish(logger: Logger, code: int) -> None:
    if isinstance(logger, WandbLogger):
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=code)
        return
    logger.finalize("success" if code == 0 else "failed")
