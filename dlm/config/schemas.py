"""The schemas behind `conf/`: one dataclass for each choice that a user can make.

What is built from a choice is itself a dataclass of plain values, and its fields are the schema. The schemas of the
bench and of training are in `dlm.bench.config` and `dlm.training.config`.

A YAML file of a group names its schema in its defaults list (`/schema/sampler/threshold@_here_`), so that a wrong key
or type fails while the configuration is composed, with its path. Knows neither torch nor Lightning: `_target_` is a
name until `instantiate` is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from dlm.config.build import mirror
from dlm.data.prompts import DemoFamilyPrompts, DemoPrompts, HfPrompts, JsonlPrompts
from dlm.decoding.engines import ENGINES
from dlm.decoding.params import SamplingParams
from dlm.decoding.samplers import SAMPLERS
from dlm.models.io.model_source import CheckpointSource, RandomSource


@dataclass
class Auto:
    """Left to the model: what its algorithm is known with."""

    _target_: str = "dlm.decoding.algorithms.FamilyDefault"


@dataclass
class TrainerConfig:
    """What a user may choose of `lightning.Trainer`; the rest is set by the pipeline."""

    _target_: str = "lightning.pytorch.Trainer"
    accelerator: str = "cpu"
    devices: int | str | None = 1
    num_nodes: int | None = 1
    strategy: str = "auto"


@dataclass
class NoLogger:
    _target_: str | None = None


@dataclass
class CsvLogger:
    _target_: str = "lightning.pytorch.loggers.CSVLogger"
    name: str = "csv"


@dataclass
class WandbLogger:
    _target_: str = "lightning.pytorch.loggers.WandbLogger"
    project: str = "dlm"
    name: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    offline: bool = True


@dataclass
class NoTrace:
    _target_: str | None = None


@dataclass
class HtmlTrace:
    _target_: str = "dlm.report.trace.HtmlTrace"
    prompts: int = MISSING


def _generation() -> type[Any]:
    """How each prompt is decoded: the fields of `SamplingParams` and stop strings. `conf/predict.yaml` sets them."""
    hints = get_type_hints(SamplingParams)
    rows: list[Any] = [(one.name, hints[one.name], field(default=one.default)) for one in fields(SamplingParams)]
    return make_dataclass("Generation", [*rows, ("stop", list[str], field(default_factory=list))])


Generation = _generation()


@dataclass
class DecoderConfig:
    """How much is decoded at once; changes speed and memory, never an answer."""

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 8192
    arena_tokens: int | None = None
    deterministic: bool | None = None
    enforce_eager: bool = False


@dataclass
class ProgressConfig:
    """What is shown while the run goes on."""

    every_seconds: float = 5.0


@dataclass
class PredictConfig:
    """`conf/predict.yaml`."""

    model: Any = MISSING
    engine: Any = MISSING
    sampler: Any = MISSING
    algorithm: str = MISSING
    data: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    trace: Any = MISSING
    generation: Generation = field(default_factory=Generation)  # type: ignore[valid-type]  # made above
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    progress: ProgressConfig = field(default_factory=ProgressConfig)
    run_dir: str | None = None


@dataclass
class MergeConfig:
    """`conf/merge.yaml`."""

    run_dir: str = MISSING


@dataclass
class ConvertConfig:
    """`conf/convert.yaml`."""

    model: Any = MISSING
    output: str = MISSING
    format: str | None = None
    shard_gib: float = 4.0


SCHEMAS: dict[str, dict[str, type]] = {
    "model": {"checkpoint": mirror(CheckpointSource), "random": mirror(RandomSource, dtype="auto")},
    "engine": {"auto": Auto, **{name: mirror(kind) for name, kind in ENGINES.items()}},
    "sampler": {"auto": Auto, **{name: mirror(kind) for name, kind in SAMPLERS.items()}},
    "data": {
        "demo": mirror(DemoPrompts),
        "demo_family": mirror(DemoFamilyPrompts),
        "jsonl": mirror(JsonlPrompts),
        "hf": mirror(HfPrompts),
    },
    "trainer": {"trainer": TrainerConfig},
    "logger": {"none": NoLogger, "csv": CsvLogger, "wandb": WandbLogger},
    "trace": {"none": NoTrace, "html": HtmlTrace},
}
"""Schemas by group; a YAML file takes `/schema/<group>/<name>@_here_`."""


def register_schemas() -> None:
    """Make the schemas known to Hydra; calling it again changes nothing."""
    store = ConfigStore.instance()
    for group, choices in SCHEMAS.items():
        for name, schema in choices.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
    store.store(group="schema", name="predict", node=PredictConfig)
    store.store(group="schema", name="merge", node=MergeConfig)
    store.store(group="schema", name="convert", node=ConvertConfig)
