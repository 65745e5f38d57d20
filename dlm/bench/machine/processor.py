"""The processor's name and load."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The CPU's name and count."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor() or platform.machine()


def load_average() -> float:
    """Load average of the last minute; nan if the system does not report it."""
    info = Path("/proc/loadavg")
    return float(info.read_text(encoding="ascii").split()[0]) if info.exists() else float("nan")
