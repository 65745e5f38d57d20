"""The schemas behind `conf/evaluate.yaml` and `conf/task/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from dlm.config.build import mirror
from dlm.config.schemas import PredictConfig
from dlm.evaluation.tasks import ChoiceTask, GenerationTask


@dataclass
class CheckingConfig:
    """How answers are judged; changes no answer."""

    k: list[int] = field(default_factory=lambda: [1])
    level: float = 0.95
    seconds: float = 10.0
    memory_mib: int = 1024
    threads: int | None = None


@dataclass
class PublishedConfig:
    """A published score, in per cent."""

    score: float | None = None
    tolerance: float = 3.0
    source: str | None = None


@dataclass
class EvaluateConfig(PredictConfig):
    """`conf/evaluate.yaml`."""

    task: Any = MISSING
    allow_code_execution: bool = False
    checking: CheckingConfig = field(default_factory=CheckingConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)


def register() -> None:
    """Make the schemas known to Hydra; calling it again changes nothing."""
    store = ConfigStore.instance()
    store.store(group="schema/task", name="generation", node=mirror(GenerationTask))
    store.store(group="schema/task", name="choices", node=mirror(ChoiceTask))
    store.store(group="schema", name="evaluate", node=EvaluateConfig)
