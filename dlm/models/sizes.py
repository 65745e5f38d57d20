"""Shapes of random models to choose from; torch-free, so that `--help` can list them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Shape of a dense LLaDA body and of its vocabulary."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int = 126464
    max_positions: int = 4096


SIZES: dict[str, Size] = {
    "tiny": Size(64, 192, 2, 4, vocab_size=1024, max_positions=1024),
    "small": Size(256, 768, 4, 8, vocab_size=1024, max_positions=2048),
    "57m": Size(640, 1920, 11, 10),
    "1b": Size(2048, 6144, 18, 16),
    "8b": Size(4096, 12288, 32, 32),
}
"""By name; `57m` has a body of 58 million parameters and LLaDA's vocabulary, `8b` is LLaDA-8B's shape."""
