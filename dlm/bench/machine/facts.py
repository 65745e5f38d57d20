"""Machine facts needed to read a table, including peak rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from dlm.bench.machine.processor import load_average, processor
from dlm.bench.machine.rates import Probe, memory_block
from dlm.bench.machine.stopwatch import Stopwatch

SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product gives the peak rate, by device."""


@dataclass(frozen=True)
class Machine:
    """Machine facts needed to read a table.

    Attributes:
        processor, device, threads, torch: names and counts.
        clock: how seconds were measured, see `stopwatch`.
        load: runnable processes in the minute before the run.
        matmul_flops: peak by dtype, of a square matmul.
        memory_bytes: bytes read per second.
    """

    processor: str
    device: str
    clock: str
    threads: int
    torch: str
    load: float
    matmul_flops: dict[str, float]
    memory_bytes: float


class Yardstick:
    """Measures the facts, once before each row. The best measurement counts, since a shared machine is slower at times
    but never faster.

    Args:
        now: the clock.
        dtypes: of the matmuls.
    """

    def __init__(self, now: Stopwatch, dtypes: Mapping[str, torch.dtype]) -> None:
        self._now, self._load = now, load_average()
        self._side = SIDE[now.device.type]
        block, self._bytes = memory_block(now.device)
        self._memory = Probe(lambda: block.sum())
        self._matmuls = {}
        for name, dtype in dtypes.items():
            square = torch.randn(self._side, self._side, device=now.device).to(dtype)
            self._matmuls[name] = Probe(partial(F.linear, square, square))

    @torch.inference_mode()
    def sample(self) -> None:
        """Take another measurement."""
        for probe in (self._memory, *self._matmuls.values()):
            probe.sample(self._now)

    def read(self) -> Machine:
        """The facts so far."""
        device = self._now.device
        return Machine(
            processor=processor(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            clock=self._now.clock,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            load=self._load,
            matmul_flops={name: 2.0 * self._side**3 / min(one.samples) for name, one in self._matmuls.items()},
            memory_bytes=self._bytes / min(self._memory.samples),
        )
