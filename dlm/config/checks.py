"""What the schemas cannot see: values out of range and choices that do not go together, all of them at once.

Runs before torch is imported and before any weight is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlm.config.build import instantiate
from dlm.decoding.algorithms import FamilyDefault
from dlm.decoding.params import PARAM_NAMES, SamplingParams
from dlm.errors import ConfigError, RequestError
from dlm.runs.launch import is_launched


def check_predict(config: DictConfig) -> None:
    """Raise `ConfigError` with every missing value and every fault of `conf/predict.yaml`, each with its remedy."""
    check(config, CHECKS)


def check(config: DictConfig, checks: dict[tuple[str, ...], Callable[[DictConfig], list[str]]]) -> None:
    """Raise `ConfigError` with every missing value and every fault that `checks`, such as `CHECKS`, find."""
    broken = dict(_unusable(config))
    faults = list(broken.values())
    for parts, find in checks.items():
        if not any(key.split(".")[0] in parts for key in broken):
            faults += find(config)
    if faults:
        raise ConfigError("\n  ".join(["the configuration cannot be used:", *faults]))


def _unusable(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Keys that have no value: missing ones, and interpolations that lead nowhere."""
    for part in map(str, config):
        try:
            missing = {part} if OmegaConf.is_missing(config, part) else _missing(config[part])
        except Exception as error:  # omegaconf's, and whatever a resolver raises
            yield part, f"{part}: {str(error).splitlines()[0]}"
            continue
        for key in sorted(missing):
            yield key, f"{key} is not set: write {key}=<value>"


def _missing(value: Any) -> set[str]:
    """Keys without a value in a part of the configuration, all of whose interpolations are tried."""
    if not OmegaConf.is_config(value):
        return set()
    OmegaConf.to_container(value, resolve=True)
    return OmegaConf.missing_keys(value)


def in_multirun() -> bool:
    """Whether this is one of several jobs of `-m`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _model_faults(config: DictConfig) -> list[str]:
    faults: list[str] = instantiate(config.model).faults()
    return faults


def _drafter_faults(config: DictConfig) -> list[str]:
    """An adapter for drafts where nothing drafts."""
    folder, engine = config.model.get("drafter_adapter_path"), config.engine._target_
    if folder is None or engine.endswith(".LinearSpec"):
        return []
    return [
        f"model.drafter_adapter_path={folder}: only linear_spec drafts; write algorithm=linear_spec, or leave it out"
    ]


def _data_faults(config: DictConfig) -> list[str]:
    faults: list[str] = instantiate(config.data).faults()
    limit = config.data.limit
    if limit is not None and limit < 1:
        faults.append(f"data.limit={limit}: must be at least 1, or null for all")
    return faults


def _generation_faults(config: DictConfig) -> list[str]:
    generation = config.generation
    values = {name: generation[name] for name in PARAM_NAMES}
    unjudged: Any = SimpleNamespace(**values)  # SamplingParams itself would refuse them at the first look
    faults = [f"generation.{fault}" for fault in SamplingParams.faults(unjudged)]
    if any(not string for string in generation.stop):
        faults.append("generation.stop: an empty string stops every answer at once; leave it out")
    for kind in ("engine", "sampler"):
        try:
            choice = instantiate(config[kind])
            if kind == "sampler" and not faults and not isinstance(choice, FamilyDefault):
                blocks = -(-generation.gen_length // generation.block_length)
                choice.check(SamplingParams(**values), blocks)
        except RequestError as error:
            faults.append(f"{kind}: {error}")
        except Exception as error:
            if not isinstance(error.__cause__, RequestError):
                raise
            faults.append(f"{kind}.{error.__cause__}")
    return faults


def _decoder_faults(config: DictConfig) -> list[str]:
    faults = [
        f"decoder.{key}={value}: must be at least 1"
        for key, value in config.decoder.items()
        if isinstance(value, int) and not isinstance(value, bool) and value < 1
    ]
    generation = config.generation
    rows = (generation.block_length or 1) * (2 if (generation.cfg_scale or 0.0) > 0 else 1)
    if not faults and config.decoder.max_num_batched_tokens < rows:
        faults.append(
            f"decoder.max_num_batched_tokens={config.decoder.max_num_batched_tokens}: a block alone has {rows} "
            "positions; raise it or lower generation.block_length"
        )
    return faults


def _trainer_faults(config: DictConfig) -> list[str]:
    trainer, faults = config.trainer, []
    devices, nodes = trainer.devices, trainer.num_nodes
    if isinstance(devices, str) and devices != "auto" and not devices.isdigit():
        return [f"trainer.devices={devices}: a number, or auto"]
    count = int(devices) if devices is not None and devices != "auto" else 1
    if count < 1 and count != -1:
        faults.append(f"trainer.devices={devices}: must be at least 1")
    if nodes is None or nodes < 1:
        faults.append(f"trainer.num_nodes={nodes}: must be at least 1")
    elif trainer.strategy == "auto" and (count > 1 or nodes > 1):
        faults.append(
            f"trainer.devices={devices}, trainer.num_nodes={nodes} with trainer.strategy=auto: several processes are "
            "trainer=ddp"
        )
    if trainer.strategy == "ddp" and in_multirun() and not is_launched():
        faults.append(
            "trainer=ddp with -m: each process that it starts would run the whole sweep again. Use one process a job, "
            "or hydra/launcher=slurm, which starts the processes of each job itself"
        )
    if trainer.strategy not in ("auto", "ddp"):
        faults.append(f"trainer.strategy={trainer.strategy}: auto (one process) or ddp")
    world = os.environ.get("WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" in os.environ and world not in (None, "1") and trainer.strategy != "ddp":
        faults.append(f"trainer: torchrun started {world} processes, and each would decode everything; use trainer=ddp")
    return faults


def _progress_faults(config: DictConfig) -> list[str]:
    every = config.progress.every_seconds
    return [] if every > 0 else [f"progress.every_seconds={every}: must be above 0"]


def _trace_faults(config: DictConfig) -> list[str]:
    if config.trace.get("_target_") is None:
        return []
    faults: list[str] = instantiate(config.trace).faults()
    if not config.generation.record:
        faults.append("generation.record=false: trace=html shows what record keeps; leave it out, or write trace=none")
    return faults


CHECKS: dict[tuple[str, ...], Callable[[DictConfig], list[str]]] = {
    ("model",): _model_faults,
    ("model", "engine"): _drafter_faults,
    ("data",): _data_faults,
    ("generation", "engine", "sampler"): _generation_faults,
    ("decoder", "generation"): _decoder_faults,
    ("trainer",): _trainer_faults,
    ("progress",): _progress_faults,
    ("trace", "generation"): _trace_faults,
}
"""Each check with the parts of the configuration that it reads."""
