"""The schema behind `conf/bench.yaml` and `conf/workload/`, and the checks of its values. Knows no torch.

The other schemas are in `dlm.config` and `dlm.pipeline.training_config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from dlm.errors import ConfigError
from dlm.models.sizes import SIZES

ENGINES = ("full", "prefix_cache", "dual_cache")
DTYPES = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
CLOCKS = ("wall", "cpu")


@dataclass
class WorkloadConfig:
    """What is decoded.

    Attributes:
        size: shape of the random model, a key of `dlm.models.sizes.SIZES`.
        engines, dtypes, batches: one row of the table for each combination.
        prompt_length: of every prompt when the batch is 1; larger batches take GSM8K-like lengths around it.
        gen_length, block_length: of each canvas.
        steps_per_block: schedule of `sampler=fixed`, by engine.
        blocks: how many blocks of each canvas are decoded.
        repetitions, row_seconds: rounds of a row at most; after `row_seconds` no further one begins.
        seed: of the weights and prompts.
    """

    size: str = MISSING
    engines: list[str] = MISSING
    dtypes: list[str] = MISSING
    batches: list[int] = MISSING
    prompt_length: int = 128
    gen_length: int = 128
    block_length: int = 32
    steps_per_block: dict[str, int] = field(default_factory=dict)
    blocks: int = 1
    repetitions: int = 5
    row_seconds: float = 30.0
    seed: int = 0


@dataclass
class BenchConfig:
    """`conf/bench.yaml`."""

    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    device: str = "auto"
    clock: str = "wall"
    profile: bool = False
    json: str | None = None


def register() -> None:
    """Make the schemas known to Hydra."""
    store = ConfigStore.instance()
    store.store(group="schema", name="bench", node=BenchConfig)
    store.store(group="schema/workload", name="workload", node=WorkloadConfig)


def to_bench(config: DictConfig) -> BenchConfig:
    """The checked values; raises `ConfigError` with all faults at once."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError("; ".join(f"{key} is not set" for key in missing))
    bench = cast(BenchConfig, OmegaConf.to_object(config))
    work = bench.workload
    faults = [f"device={bench.device} must be one of {', '.join(DEVICES)}"] if bench.device not in DEVICES else []
    if bench.clock not in CLOCKS:
        faults.append(f"clock={bench.clock} must be one of {', '.join(CLOCKS)}")
    if bench.json is not None and not Path(bench.json).absolute().parent.is_dir():
        faults.append(f"json={bench.json} lies in a folder that does not exist")
    if work.size not in SIZES:
        faults.append(f"workload.size={work.size} must be one of {', '.join(SIZES)}")
    for name, given, known in (("engines", work.engines, ENGINES), ("dtypes", work.dtypes, DTYPES)):
        wrong = [value for value in given if value not in known]
        if wrong or not given:
            faults.append(f"workload.{name}={list(given)} must be a list out of {', '.join(known)}")
    if not work.batches or min(work.batches) < 1:
        faults.append(f"workload.batches={list(work.batches)} must be a list of whole numbers from 1")
    for name in ("prompt_length", "gen_length", "block_length", "blocks", "repetitions"):
        if getattr(work, name) < 1:
            faults.append(f"workload.{name}={getattr(work, name)} must be at least 1")
    if not faults:
        faults += _schedule_faults(work)
    if faults:
        raise ConfigError("; ".join(faults))
    return bench


def _schedule_faults(work: WorkloadConfig) -> list[str]:
    faults = []
    if work.gen_length % work.block_length or work.blocks * work.block_length > work.gen_length:
        faults.append(
            f"workload.gen_length={work.gen_length} must hold whole blocks of block_length={work.block_length}, "
            f"at least blocks={work.blocks} of them"
        )
    for engine in work.engines:
        steps = work.steps_per_block.get(engine, 0)
        if not 1 <= steps <= work.block_length:
            faults.append(f"workload.steps_per_block.{engine}={steps} must be 1..{work.block_length}")
    return faults
