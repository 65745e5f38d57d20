"""The facts to read a table by: which machine, and its peak rates."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from dlm.bench.rates import Probe, memory_block
from dlm.bench.stopwatch import Stopwatch


@dataclass(frozen=True)
class Machine:
    """Facts to read a table by.

    Attributes:
        processor, device, threads, torch: names and counts.
        clock: how seconds were read, see `stopwatch`.
        load: runnable processes a minute before, ours included.
        matmul_flops: peak by dtype, of a square matmul.
        memory_bytes: a second, read.
    """

    processor: str
    device: str
    clock: str
    threads: int
    torch: str
    load: float
    matmul_flops: dict[str, float]
    memory_bytes: float


@torch.inference_mode()
def read_machine(now: Stopwatch, dtypes: Mapping[str, torch.dtype]) -> Machine:
    """Measure the facts."""
    device = now.device
    side = 2048 if device.type == "cpu" else 8192
    block, count = memory_block(device)
    memory = Probe(lambda: block.sum())
    peaks = {}
    for _ in range(3):
        memory.sample(now)
    for name, dtype in dtypes.items():
        square = torch.randn(side, side, device=device).to(dtype)
        probe = Probe(partial(F.linear, square, square))
        for _ in range(3):
            probe.sample(now)
        peaks[name] = 2.0 * side**3 / min(probe.samples)
    return Machine(
        processor=processor(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        clock=now.clock,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        load=load_average(),
        matmul_flops=peaks,
        memory_bytes=count / min(memory.samples),
    )


def processor() -> str:
    """The CPU's name and how many of it there are."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor() or platform.machine()


def load_average() -> float:
    """Of the last minute; nan where the system does not say."""
    info = Path("/proc/loadavg")
    return float(info.read_text(encoding="ascii").split()[0]) if info.exists() else float("nan")
