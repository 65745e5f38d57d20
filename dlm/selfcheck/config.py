"""Schema of `conf/selfcheck.yaml`, with its value checks. Independent of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from dlm.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float64", "float16")


@dataclass
class SelfcheckConfig:
    """`conf/selfcheck.yaml`."""

    model: Any = MISSING
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    threads: int | None = None
    seconds: float = 40.0
    seed: int = 0


def register() -> None:
    """Register the schema with Hydra; calling it again changes nothing."""
    ConfigStore.instance().store(group="schema", name="selfcheck", node=SelfcheckConfig)


def check(config: DictConfig) -> None:
    """Raise `ConfigError` listing every value out of range."""
    faults = []
    if not config.dtypes or any(dtype not in DTYPES for dtype in config.dtypes):
        faults.append(f"dtypes={list(config.dtypes)} must be a list of values from {', '.join(DTYPES)}")
    if config.threads is not None and config.threads < 1:
        faults.append(f"threads={config.threads} must be at least 1, or null for torch's default")
    if not config.seconds > 0:
        faults.append(f"seconds={config.seconds} must be above 0")
    if faults:
        raise ConfigError("; ".join(faults))
