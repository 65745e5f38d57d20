"""Peak memory of a run."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory above what was in use at construction.

    On CUDA: memory allocated by torch. On Linux: the resident set of this process, whose high-water mark the kernel
    resets when 5 is written to `clear_refs` (proc_pid_clear_refs(5)). Freed memory is first returned to the system
    (malloc_trim(3), if the C library has it), since its reuse would not be seen. Unknown on other systems.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        self.known = True
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            CLEAR_REFS.write_text("5", encoding="ascii")
            self.before = _status("VmRSS")
        except OSError:
            self.known = False

    def read(self) -> int | None:
        """Bytes, or None if unknown."""
        if not self.known:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return max(0, _status("VmHWM") - self.before)


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS} has no {name}")
    return int(found[1]) * 1024
