"""Every backend gives what the definition gives, on fresh windows, arena ranges and grouped queries."""

from __future__ import annotations

import pytest
import torch

from dlm.models.attention import NaiveAttention, SdpaAttention, Segment, choose_backend, equal_runs

SEGMENTS = [
    Segment(0, 5),
    Segment(5, 5, slot=0),
    Segment(10, 7, slot=20),
    Segment(17, 3, slot=42, key_start=40, num_keys=9),
    Segment(20, 3, slot=53, key_start=50, num_keys=9),
    Segment(23, 3, slot=61, key_start=60, num_keys=9),
    Segment(26, 4, slot=70, key_start=70, num_keys=6),
]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sdpa_equals_the_definition(kv_heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = 32
    query = torch.randn(rows, 4, 8, dtype=dtype)
    key, value = (torch.randn(rows, kv_heads, 8, dtype=dtype) for _ in range(2))
    arenas = [torch.randn(2, 80, kv_heads, 8, dtype=dtype) for _ in range(2)]
    results = []
    for backend in (SdpaAttention, NaiveAttention):
        keys, values = (arena.clone() for arena in arenas)
        output = backend(SEGMENTS, keys, values)(1, query, key, value)
        results.append((output[:30], keys, values))
        assert torch.isfinite(output).all()
        assert torch.equal(keys[0], arenas[0][0])
        assert torch.equal(keys[1, 42:45], key[17:20])
    for mine, naive in zip(*results, strict=True):
        torch.testing.assert_close(mine, naive, atol=1e-5, rtol=1e-5)


def test_equal_neighbours_share_a_call() -> None:
    runs = equal_runs(SEGMENTS)
    assert [(run.count, run.stride) for run in runs] == [(2, 0), (1, 0), (3, 10), (1, 0)]


def test_the_backend_follows_device_and_dtype() -> None:
    assert choose_backend(torch.device("cpu"), torch.bfloat16) is SdpaAttention
    assert choose_backend(torch.device("cuda"), torch.float32) is SdpaAttention
