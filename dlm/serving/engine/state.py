"""Lifecycle state of a worker."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class ServerState:
    """Written by the worker only, read by its routes.

    Attributes:
        name: `starting`, `ready`, `draining` or `stopped`.
        url: of the worker.
        started: start time, in seconds since 1970.
    """

    name: str = "starting"
    url: str = ""
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def ready(self) -> bool:
        return self.name == "ready"
