"""One packed attention call, several backends.

A `Segment` says which rows of the packed batch form one canvas's window and which keys they attend to: the window's
own keys, or a range of the arena into which the window has just been written. Nothing is padded; no row sees another
canvas.

Every backend is an `Attention` made anew for each forward from the same segments:

* `SeparateAttention`: one `scaled_dot_product_attention` per canvas. The default on a CPU.
* `SdpaAttention`: one for each run of canvases of equal shape whose key ranges are evenly spaced (views, no copy). The
  fallback on other devices.
* `VarlenAttention`: variable-length flash kernels on CUDA, for float16 and bfloat16. `frames.py` has the same over
  buffers of fixed shape, for forwards that are recorded.
* `NaiveAttention`: the definition written out, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlm.models.attention import kernels
from dlm.models.attention.naive import NaiveAttention
from dlm.models.attention.packed import PackedAttention
from dlm.models.attention.sdpa import Run, SdpaAttention, SeparateAttention, equal_runs
from dlm.models.attention.segments import Segment
from dlm.models.attention.varlen import VarlenAttention
from dlm.models.backbone import Attention

__all__ = [
    "AttentionBackend",
    "NaiveAttention",
    "PackedAttention",
    "Run",
    "SdpaAttention",
    "Segment",
    "SeparateAttention",
    "VarlenAttention",
    "choose_backend",
    "equal_runs",
]

AttentionBackend = Callable[[Sequence[Segment], Tensor | None, Tensor | None], Attention]


def choose_backend(device: torch.device, dtype: torch.dtype) -> type[SdpaAttention] | type[VarlenAttention]:
    """The fastest backend that runs here and, on a CPU, leaves a window's bits to that window: flash kernels take half
    precision on CUDA only."""
    if device.type == "cpu":
        return SeparateAttention
    half = dtype in (torch.float16, torch.bfloat16)
    if device.type == "cuda" and half and kernels.varlen_kernel() is not None:
        return VarlenAttention
    return SdpaAttention
