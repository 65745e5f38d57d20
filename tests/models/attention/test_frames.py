"""A batch in buffers of fixed shape gives what it gives by itself, whatever fills the buffers up or was in them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from dlm.models.attention import Segment, VarlenAttention, kernels
from dlm.models.attention.frames import Frame, FrameAttention, FrameShape
from dlm.models.io.loading import random_checkpoint
from tests.models.attention.stand_in_kernel import KernelByDefinition

CAPACITY = 400


def draw_segments(chance: random.Random) -> list[Segment]:
    """Windows on ranges of an arena, in any order of addresses; now and then two on one range, or one that keeps
    nothing."""
    ranges = chance.sample(range(0, CAPACITY, 40), chance.randint(1, 8))
    segments: list[Segment] = []
    row = 0
    for start in ranges:
        num_keys, rows = chance.randint(18, 40), chance.randint(1, 18)
        at = start + chance.randint(0, num_keys - rows)
        segments.append(Segment(row, rows, at if chance.random() < 0.9 else None, start, num_keys))
        row += rows
        if chance.random() < 0.2:
            segments.append(Segment(row, 1, start, start, at - start + 1))
            row += 1
    return segments


@pytest.mark.parametrize("takes_used", [False, True], ids=["gathering", "in_place"])
@pytest.mark.parametrize("size", ["tiny", "tiny_moe", "tiny_dream"])
def test_a_frame_gives_the_bits_of_the_batch(size: str, takes_used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = KernelByDefinition(takes_used=takes_used)
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernel)
    backbone = random_checkpoint(size, seed=4, dtype="float32").backbone
    config, chance = backbone.config, random.Random(size)
    torch.manual_seed(3)
    shape = (config.num_layers, CAPACITY + 1, config.num_kv_heads, config.head_dim)
    arenas = [torch.randn(shape) for _ in range(2)]
    frames: dict[FrameShape, Frame] = {}
    fills = 0
    for _ in range(30):
        segments = draw_segments(chance)
        num_rows = segments[-1].row + segments[-1].rows
        token_ids = np.array([chance.randrange(500) for _ in range(num_rows)])
        positions = np.concatenate([np.arange(s.rows) + chance.randrange(100) for s in segments])
        wanted = FrameShape.of(segments, in_place=takes_used)
        fills += wanted in frames
        frame = frames.setdefault(wanted, Frame(wanted, CAPACITY, torch.device("cpu")))
        frame.fill(segments, token_ids, positions)
        results: list[tuple[Tensor, ...]] = []
        with torch.inference_mode():
            for framed in (False, True):
                keys, values = (arena.clone() for arena in arenas)
                if framed:
                    hidden = backbone(frame.token_ids, frame.positions, FrameAttention(frame, kernel, keys, values))
                    assert len(hidden) == wanted.rows
                    assert torch.isfinite(hidden).all()
                else:
                    plain = VarlenAttention(segments, keys, values)
                    hidden = backbone(torch.from_numpy(token_ids), torch.from_numpy(positions), plain)
                results.append((hidden[:num_rows], keys[:, :CAPACITY], values[:, :CAPACITY]))
        for mine, theirs in zip(*results, strict=True):
            assert torch.equal(mine, theirs)
    assert fills >= 10


def test_shapes_hold_the_batch_and_are_few() -> None:
    shapes = {False: set[FrameShape](), True: set[FrameShape]()}
    for windows in range(1, 65):
        for rows in (1, 4, 8, 16, 32):
            segments = [Segment(i * rows, rows, i * 700, i * 700, 40 + 10 * i) for i in range(windows)]
            for in_place, seen in shapes.items():
                shape = FrameShape.of(segments, in_place=in_place)
                assert shape.rows >= windows * rows
                assert shape.longest_query >= rows
                assert shape.longest_keys >= segments[-1].num_keys
                spare = shape.rows - windows * rows
                assert (shape.segments - windows) * shape.longest_query >= spare
                assert spare <= max(16, windows * rows / 4)
                assert (shape.keys == 0) == in_place
                seen.add(shape)
    assert len(shapes[True]) < 110
    assert len(shapes[False]) < 200
