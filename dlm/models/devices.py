"""What a device has room for, and how numbers of the host get there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def free_memory(device: torch.device) -> int:
    """Bytes free on `device`; on a CPU the memory that the machine can hand out now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # macOS: what is installed is the nearest that the standard library knows
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(available.split()[1]) * 1024


def upload(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """A host array on `device`, in its dtype.

    For CUDA it goes through pinned memory, so that nothing waits; that is not used again before the copy is done.
    """
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
