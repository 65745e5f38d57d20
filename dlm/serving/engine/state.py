"""Where a worker is in its life."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class ServerState:
    """Changed by the worker alone, read by its routes.

    Attributes:
        name: `starting`, `ready` or `draining`.
        url: under which it listens.
        started: seconds since 1970.
    """

    name: str = "starting"
    url: str = ""
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def ready(self) -> bool:
        return self.name == "ready"
