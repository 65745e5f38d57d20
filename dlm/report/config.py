"""Schema of `conf/report.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ReportConfig:
    """`conf/report.yaml`."""

    logger: Any = MISSING
    runs: str = MISSING
    output: str | None = None


def register() -> None:
    """Register the schema with Hydra; calling it again changes nothing."""
    ConfigStore.instance().store(group="schema", name="report", node=ReportConfig)
