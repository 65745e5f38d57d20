"""Builds the Trainer for predict, from the user's choices and the pipeline's own settings."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from dlm.config.build import instantiate
from dlm.errors import ConfigError

QUIET = {
    "lightning.pytorch.utilities.rank_zero": "available accelerators, and tips",
    "lightning.fabric.utilities.rank_zero": "the same from Fabric",
    "lightning.pytorch.accelerators.cuda": "visible devices",
    "lightning.fabric.utilities.distributed": "a line for each process that joins",
}
"""Loggers whose info lines are noise here; their warnings are still shown."""

KNOWN_WARNINGS = {
    r".*isinstance\(treespec, LeafSpec\).*": "lightning 2.6 uses a name that torch 2.13 deprecates",
    r".*does not have many workers.*": "the loader has one element and no work to distribute",
    r"GPU available but not used.*": "trainer=cpu was asked for",
    r"The `srun` command is available.*": "one process on a login node needs no srun",
    r".*barrier\(\): using the device under current context.*": "Lightning sets the device itself where it matters",
}
"""Warnings of Lightning and torch that are expected here, with the reason."""


def quieten() -> None:
    """Silence known, harmless output; see `QUIET` and `KNOWN_WARNINGS`."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def build_trainer(
    config: DictConfig,
    callbacks: Sequence[Callback],
    logger: Logger | None,
    run_dir: Path,
    **settings: Any,
) -> Trainer:
    """A Trainer with all training features off; `settings` are further Trainer arguments.

    Raises:
        ConfigError: devices are missing, or the launcher started a different number of processes.
    """
    # auto_requeue would save a checkpoint of the whole model when SLURM sends its warning signal.
    plugins = [SLURMEnvironment(auto_requeue=False)] if _under_slurm() else None
    world = os.environ.get("WORLD_SIZE")
    try:
        trainer: Trainer = instantiate(
            config,
            callbacks=list(callbacks),
            logger=logger or False,
            plugins=plugins,
            default_root_dir=str(run_dir),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
            **settings,
        )
    except Exception as error:
        cause: Any = error.__cause__ or error
        if isinstance(cause, MisconfigurationException | ValueError | RuntimeError):
            raise ConfigError(f"trainer: {cause}; choose trainer=cpu, gpu or ddp, or other trainer.devices") from error
        raise
    # Not `trainer.world_size`: under torchrun that repeats the launcher's number.
    made = trainer.num_devices * trainer.num_nodes
    if world is not None and int(world) != made:
        raise ConfigError(
            f"the launcher started {world} processes, but trainer.devices={config.devices} with trainer.num_nodes="
            f"{config.num_nodes} makes {made}: each would decode everything. Use trainer=ddp without "
            "trainer.devices, or the launcher's own numbers"
        )
    return trainer


def _under_slurm() -> bool:
    return "TORCHELASTIC_RUN_ID" not in os.environ and SLURMEnvironment.detect()
