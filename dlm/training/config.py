"""The schema of `conf/train.yaml`, whose comments describe each key.

The other schemas are in `dlm.config.schemas` and `dlm.bench.config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class TrainedModel:
    """A checkpoint to continue from, or the shape of a new model."""

    path: str | None = None
    tokenizer: str | None = None
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    rope_theta: float = 500000.0
    max_positions: int = 1024
    tie_embeddings: bool = False
    init_std: float = 0.02


@dataclass
class TrainingData:
    """Where canvases come from and how they are masked."""

    path: str | None = None
    gen_lengths: list[int] = field(default_factory=lambda: [64])
    tight_share: float = 0.0
    batch_size: int = 64
    block_lengths: list[int] = field(default_factory=lambda: [32])
    anywhere_share: float = 0.25


@dataclass
class TrainingOptimizer:
    """Learning rates and schedule."""

    muon_lr: float = 0.02
    adamw_lr: float = 0.003
    weight_decay: float = 0.1
    warmup_steps: int = 50
    clip_norm: float = 1.0
    weighting: str = "uniform"


@dataclass
class TrainingTrainer:
    """Where and how long training runs."""

    max_steps: int = MISSING
    accelerator: str = "auto"
    precision: str = "bf16-mixed"
    compile: bool = False
    num_threads: int | None = None


@dataclass
class TrainConfig:
    """`conf/train.yaml`."""

    model: TrainedModel = field(default_factory=TrainedModel)
    data: TrainingData = field(default_factory=TrainingData)
    optimizer: TrainingOptimizer = field(default_factory=TrainingOptimizer)
    trainer: TrainingTrainer = field(default_factory=TrainingTrainer)
    log_every: int = 50
    validate_every: int | None = None
    seed: int = 0
    output: str = MISSING


def register_training_schema() -> None:
    """Register the schema with Hydra; idempotent."""
    ConfigStore.instance().store(group="schema", name="train", node=TrainConfig)
