"""Variable-length attention kernels for CUDA under one signature: torch's own, or that of the package `flash-attn`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor


class VarlenKernel(Protocol):
    """Attention of sequences laid end to end; causal masks are aligned to the lower right."""

    @property
    def takes_used(self) -> bool:
        """It takes `used`."""

    def __hash__(self) -> int:
        """What is found out about it is kept by it."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Tensor,
        keys: Tensor,
        longest_query: int,
        longest_keys: int,
        /,
        *,
        causal: bool,
        used: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: `[rows, heads, head_dim]`.
            key, value: `[slots, kv_heads, head_dim]`.
            queries: `[sequences + 1]` int32, where each sequence's rows begin and the last one's end.
            keys: the same of the keys.
            longest_query, longest_keys: at least the rows and keys of every sequence.
            causal: a sequence's last row sees all its keys, the one before it all but one, and so on.
            used: `[sequences]` int32, how many keys each sequence has from its beginning on; None: up to where the
                next one begins.

        Returns:
            `[rows, heads, head_dim]`.
        """


class TorchKernel:
    """torch's `varlen_attn`, which names grouped heads and causality differently between versions, and takes used
    lengths in some."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.names = frozenset(inspect.signature(function).parameters)
        self.takes_used = "seqused_k" in self.names

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Tensor,
        keys: Tensor,
        longest_query: int,
        longest_keys: int,
        /,
        *,
        causal: bool,
        used: Tensor | None = None,
    ) -> Tensor:
        options: dict[str, Any] = {} if used is None else {"seqused_k": used}
        if causal:
            options |= {"window_size": (-1, 0)} if "window_size" in self.names else {"is_causal": True}
        if query.shape[1] != key.shape[1]:
            if "enable_gqa" in self.names:
                options["enable_gqa"] = True
            else:
                group = query.shape[1] // key.shape[1]
                key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        return self.function(query, key, value, queries, keys, longest_query, longest_keys, **options)


class FlashKernel:
    """`flash_attn_varlen_func` of the package `flash-attn`."""

    takes_used = False

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Tensor,
        keys: Tensor,
        longest_query: int,
        longest_keys: int,
        /,
        *,
        causal: bool,
        used: Tensor | None = None,
    ) -> Tensor:
        if used is not None:
            raise RuntimeError("flash-attn's variable-length kernel takes no used lengths")
        return self.function(query, key, value, queries, keys, longest_query, longest_keys, causal=causal)


@cache
def varlen_kernel() -> VarlenKernel | None:
    """torch's own variable-length kernel, else that of the package `flash-attn`, else None."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        return TorchKernel(importlib.import_module("torch.nn.attention.varlen").varlen_attn)
    if importlib.util.find_spec("flash_attn") is not None:
        return FlashKernel(importlib.import_module("flash_attn").flash_attn_varlen_func)
    return None


@cache
def reads_in_place(kernel: VarlenKernel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel reads keys where they lie: ranges of an arena in any order, overlapping ones too.

    That is what it does when `keys` holds where each range begins and `used` how long it is, but nothing promises it
    of ranges that are out of order: so it is tried, once for a kernel, device and dtype, on four small ranges between
    NaN. Without it keys are gathered first.
    """
    if not kernel.takes_used:
        return False
    generator = torch.Generator().manual_seed(0)
    starts, lengths = [30, 5, 5, 44], [10, 7, 9, 1]
    held = torch.zeros(48, dtype=torch.bool)
    for start, length in zip(starts, lengths, strict=True):
        held[start : start + length] = True
    arena = torch.randn(2, 48, 2, 64, generator=generator).masked_fill(~held.view(1, -1, 1, 1), torch.nan)
    key, value = arena.to(device, dtype)
    query = torch.randn(12, 2, 64, generator=generator).to(device, dtype)
    queries, ends, used = (
        torch.tensor(numbers, dtype=torch.int32, device=device)
        for numbers in ([0, 4, 5, 10, 12], [0, 10, 17, 26, 27], lengths)
    )
    places = torch.cat([torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
    gathered = kernel(query, key[places.to(device)], value[places.to(device)], queries, ends, 8, 16, causal=False)
    begins = torch.tensor([*starts, 48], dtype=torch.int32, device=device)
    try:
        in_place = kernel(query, key, value, queries, begins, 8, 16, causal=False, used=used)
    except RuntimeError:  # the kernel of cuDNN refuses used lengths
        return False
    return torch.allclose(in_place.float(), gathered.float(), atol=1e-2, rtol=1e-2)
