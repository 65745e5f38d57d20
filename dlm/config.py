"""The schemas behind `conf/`: one dataclass for each choice that a user can make, and the one way to build an object.

What is built from a choice is itself a dataclass of plain values, and its fields are the schema. The schemas of the
bench and of training are in `dlm.bench.config` and `dlm.pipeline.training_config`.

A YAML file of a group names its schema in its defaults list (`/schema/sampler/threshold@_here_`), so that a wrong key
or type fails while the configuration is composed, with its path. Knows neither torch nor Lightning: `_target_` is a
name until `instantiate` is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from dlm.decoding.engines import ENGINES
from dlm.decoding.request import SamplingParams
from dlm.decoding.samplers import SAMPLERS
from dlm.pipeline.model_source import CheckpointSource, RandomSource
from dlm.pipeline.prompts import DemoFamilyPrompts, DemoPrompts, HfPrompts, JsonlPrompts
from dlm.report.trace import HtmlTrace

PLAIN = (int, float, str, bool)


def mirror(kind: type[Any], **defaults: Any) -> type[Any]:
    """The schema of a dataclass: its fields, with `_target_` naming it.

    Args:
        kind: what is built from it; a field without a default is missing until a user gives it.
        defaults: other defaults than those of `kind`.
    """
    rows: list[Any] = [("_target_", str, field(default=f"{kind.__module__}.{kind.__qualname__}"))]
    hints = get_type_hints(kind)
    for one in fields(kind):
        default = defaults.get(one.name, MISSING if one.default is dataclasses.MISSING else one.default)
        rows.append((one.name, _checked(hints[one.name]), field(default=default)))
    return make_dataclass(kind.__name__, rows)


def _checked(hint: Any) -> Any:
    """The type where omegaconf knows it, else any."""
    return hint if all(part in PLAIN or part is type(None) for part in get_args(hint) or (hint,)) else Any


def optional(name: str, kind: type[Any], without: Sequence[str]) -> type[Any]:
    """A schema of the fields of a dataclass but `without` some; None, their default, is a value that is not given."""
    hints = get_type_hints(kind)
    names = [one.name for one in fields(kind) if one.name not in without]
    return make_dataclass(name, [(one, _checked(hints[one] | None), field(default=None)) for one in names])


@dataclass
class Auto:
    """Left to the model: what its algorithm is known with."""

    _target_: str = "dlm.pipeline.model_source.FamilyDefault"


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
    "trace": {"none": NoTrace, "html": mirror(HtmlTrace)},
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


def instantiate(node: DictConfig, **extra: Any) -> Any:
    """Build the object that a node's `_target_` names from its other keys and `extra`.

    The only caller of Hydra's `instantiate`, so that a rule about allowed targets has one place to live.
    """
    from hydra.utils import instantiate as build

    return build(node, **extra)
