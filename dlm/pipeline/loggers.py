"""Lightning loggers as predict uses them: made once, told everything about the run, and always finished."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from dlm.config import instantiate


def build_logger(config: DictConfig, run_dir: Path) -> Logger | None:
    """The chosen logger, writing inside the run's folder; None for `logger=none`."""
    chosen = config.logger
    if chosen.get("_target_") is None:
        return None
    if not chosen._target_.endswith("WandbLogger"):
        csv: Logger = instantiate(chosen, save_dir=str(run_dir), version="")
        return csv
    import wandb

    make = instantiate(
        chosen,
        _partial_=True,
        name=chosen.name or run_dir.name,
        tags=list(chosen.tags),
        save_dir=str(run_dir),
        job_type="predict",
        settings=wandb.Settings(quiet=True, silent=True, console="off"),
    )
    # W&B's `config` goes past Hydra's `instantiate`, which has an argument of that name.
    logger: WandbLogger = make(config=OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    return logger


def define_steps(logger: Logger) -> None:
    """Plot progress against the number of answers; Lightning's own step stands still in predict."""
    if isinstance(logger, WandbLogger):
        logger.experiment.define_metric("progress/answers")
        logger.experiment.define_metric("progress/*", step_metric="progress/answers")


def finish(logger: Logger, code: int) -> None:
    """Close the logger, whatever happened; `code` is the exit code of the run."""
    if isinstance(logger, WandbLogger):
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=code)
        return
    logger.finalize("success" if code == 0 else "failed")
