"""The schemas behind `conf/`: one dataclass for each choice that a user can make, and the one way to build an object.

A YAML file of a group names its schema in its defaults list (`/schema/sampler/threshold@_here_`), so that a wrong key
or type fails while the configuration is composed, with its path. Knows neither torch nor Lightning: `_target_` is a
name until `instantiate` is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig


@dataclass
class CheckpointModel:
    """A checkpoint folder or hub id, or a distributed checkpoint with the configuration of one."""

    _target_: str = "dlm.pipeline.model_source.CheckpointSource"
    path: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    chat: bool | None = None
    dcp_path: str | None = None
    base_model: str | None = None
    dcp_prefix: str | None = None
    adapter_path: str | None = None


@dataclass
class RandomModel:
    """Random weights of a named size, with the demo's tokenizer."""

    _target_: str = "dlm.pipeline.model_source.RandomSource"
    size: str = MISSING
    seed: int = 0
    dtype: str = "auto"
    chat: bool | None = None


@dataclass
class FullEngine:
    _target_: str = "dlm.decoding.engines.Full"


@dataclass
class PrefixCacheEngine:
    _target_: str = "dlm.decoding.engines.PrefixCache"


@dataclass
class DualCacheEngine:
    _target_: str = "dlm.decoding.engines.DualCache"


@dataclass
class Auto:
    """Left to the model: what the family of the checkpoint is known with."""

    _target_: str = "dlm.pipeline.model_source.FamilyDefault"


@dataclass
class FixedSampler:
    _target_: str = "dlm.decoding.samplers.Fixed"
    remasking: str = "low_confidence"


@dataclass
class ThresholdSampler:
    _target_: str = "dlm.decoding.samplers.Threshold"
    threshold: float = 0.9


@dataclass
class FactorSampler:
    _target_: str = "dlm.decoding.samplers.Factor"
    factor: float = 1.0


@dataclass
class DInferThresholdSampler:
    _target_: str = "dlm.decoding.samplers.DInferThreshold"
    threshold: float = 0.9


@dataclass
class DemoData:
    _target_: str = "dlm.pipeline.prompts.DemoPrompts"
    limit: int | None = None
    chat_template: bool | None = None


@dataclass
class JsonlData:
    _target_: str = "dlm.pipeline.prompts.JsonlPrompts"
    path: str = MISSING
    prompt_field: str = "prompt"
    id_field: str = "id"
    limit: int | None = None
    chat_template: bool | None = None


@dataclass
class HfData:
    _target_: str = "dlm.pipeline.prompts.HfPrompts"
    path: str = MISSING
    name: str | None = None
    split: str = "test"
    revision: str | None = None
    prompt_field: str = "prompt"
    id_field: str = "id"
    limit: int | None = None
    chat_template: bool | None = None


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
class Generation:
    """How each prompt is decoded: the fields of `dlm.decoding.request.SamplingParams`, and stop strings."""

    gen_length: int = 64
    max_tokens: int | None = None
    steps: int = 64
    block_length: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 0.0
    max_nfe: int | None = None
    ignore_eos: bool = False
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    seed: int | None = 0
    n: int = 1
    record: bool = False
    stop: list[str] = field(default_factory=list)


@dataclass
class DecoderConfig:
    """How much is decoded at once; changes speed and memory, never an answer."""

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 8192
    arena_tokens: int | None = None


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
    generation: Generation = field(default_factory=Generation)
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
    "model": {"checkpoint": CheckpointModel, "random": RandomModel},
    "engine": {"full": FullEngine, "prefix_cache": PrefixCacheEngine, "dual_cache": DualCacheEngine, "auto": Auto},
    "sampler": {
        "fixed": FixedSampler,
        "threshold": ThresholdSampler,
        "factor": FactorSampler,
        "dinfer_threshold": DInferThresholdSampler,
        "auto": Auto,
    },
    "data": {"demo": DemoData, "jsonl": JsonlData, "hf": HfData},
    "trainer": {"trainer": TrainerConfig},
    "logger": {"none": NoLogger, "csv": CsvLogger, "wandb": WandbLogger},
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
