"""What sparse attention saves: bytes held for a canvas, and keys read by the forwards that reuse them."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import DualCache, Engine, Sparse
from dlm.decoding.packing import Batch
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Fixed
from tests.decoding.worlds import BY_NAME

PROMPT, LENGTH, BLOCK = 96, 64, 16
PARAMS = SamplingParams(gen_length=LENGTH, block_length=BLOCK, steps=LENGTH // 2, temperature=0.0)


def token_stats(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The most bytes of keys and values that the canvas held, and the keys that a reusing forward reads in a layer."""
    decoder = BY_NAME["llada"].decoder()
    config, most, reads = decoder.backbone.config, 0, set()
    forward = Decoder._forward

    def watched(self: Decoder, batch: Batch) -> Tensor:
        nonlocal most
        most = max(most, self.arena.ranges.num_taken)
        reads.update(segment.num_keys for segment in batch.segments if segment.key_start is not None)
        return forward(self, batch)

    monkeypatch.setattr(Decoder, "_forward", watched)
    prompt = tuple(range(1, PROMPT + 1))
    [done] = decoder.run([Request("r", prompt, PARAMS, engine, Fixed())])
    monkeypatch.undo()
    assert done.error is None
    [keys] = reads
    return most * config.kv_values_per_token * decoder.backbone.dtype.itemsize, keys


def test_bytes_held_and_keys_read_fall_with_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = token_stats(DualCache(), monkeypatch)
    found: dict[Any, tuple[int, int]] = {"dense": dense}
    for ratio in (1.0, 0.75, 0.5, 0.25):
        found[ratio] = token_stats(Sparse(ratio), monkeypatch)
    print("".join(f"\n{ratio}: {held / 1024:.1f} KiB held, {keys} keys read" for ratio, (held, keys) in found.items()))
    assert found[1.0] == dense
    outside, whole = PROMPT + LENGTH - BLOCK, PROMPT + LENGTH
    for ratio in (0.75, 0.5, 0.25):
        held, keys = found[ratio]
        assert keys == int(outside * ratio) + BLOCK
        assert held * whole == dense[0] * keys
