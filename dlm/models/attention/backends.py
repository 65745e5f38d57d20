"""Which attention a device and a dtype take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlm.models.attention import kernels
from dlm.models.attention.sdpa import SdpaAttention, SeparateAttention
from dlm.models.attention.segments import Segment
from dlm.models.attention.varlen import VarlenAttention
from dlm.models.backbone import Attention

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
