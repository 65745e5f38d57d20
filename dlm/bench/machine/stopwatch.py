"""Time measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Stopwatch:
    """Seconds on a clock, read once the device has finished its queued work.

    Attributes:
        device: to wait for.
        clock: `wall`, or `cpu` for the CPU time of all threads of this process: on a shared machine it does not count
            other processes; with one thread it is what `wall` would show on an idle machine.
    """

    device: torch.device
    clock: str = "wall"

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return CLOCKS[self.clock]()
