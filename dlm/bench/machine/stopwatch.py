"""How time is read."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Stopwatch:
    """Seconds on a clock, read when the device has done what it was given.

    Attributes:
        device: to wait for.
        clock: `wall`, or `cpu` for the processor time of all threads of this process: on a machine that others use too
            it does not count their turns; with one thread it is what the wall would show on an idle machine.
    """

    device: torch.device
    clock: str = "wall"

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return CLOCKS[self.clock]()
