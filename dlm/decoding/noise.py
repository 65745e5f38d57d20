"""Noise that depends only on (seed, sample, step, position, token id).

A counter-based generator: SplitMix64 (Steele, Lea, Flood 2014) over a 64-bit key for each row and the token id as the
counter. The numbers are the same on any device, in any batch and in any order.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 0xFFFFFFFFFFFFFFFF

TOKENS, ORDER, MASKS = 0, 1, 2
"""Streams: noise to choose tokens, to order positions, and to mask given tokens (`dlm.likelihood`)."""

Keys = npt.NDArray[np.uint64]


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * _MIX_1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_2) & _WORD
    return word ^ (word >> 31)


def seed_of(seed: int | None, name: str) -> int | None:
    """Seed of one prompt: 63 bits of BLAKE2b over the run's seed and the prompt's name, so it depends on neither order
    nor batch; None stays None."""
    if seed is None:
        return None
    return int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()) >> 1


def keys(seed: int, sample: int, step: int, positions: npt.NDArray[np.int64], stream: int = TOKENS) -> Keys:
    """One 64-bit key for each of `positions [m]`."""
    word = 0
    for part in (seed, sample, step, stream):
        word = _mix((word + part * GOLDEN + GOLDEN) & _WORD)
    x = positions.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(word)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))


def uniform(row_keys: Keys) -> npt.NDArray[np.float64]:
    """One number in (0, 1) for each key."""
    return ((row_keys >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def gumbel(row_keys: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise `[rows, vocab_size]` float64 for `row_keys [rows]` (the keys' bits as int64)."""
    counter = torch.arange(1, vocab_size + 1, device=row_keys.device, dtype=torch.int64) * _signed(GOLDEN)
    x = row_keys.unsqueeze(1) + counter
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(_MIX_1)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(_MIX_2)
    x = x ^ ((x >> 31) & (2**33 - 1))
    unit = (((x >> 11) & (2**53 - 1)).double() + 0.5).mul_(2.0**-53)
    return unit.log_().neg_().log_().neg_()
