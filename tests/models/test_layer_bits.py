"""One layer at the widths of real models: windows have the same bits packed together and alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dlm.models.attention import SdpaAttention, Segment
from dlm.models.backbone import Backbone
from dlm.models.io.loading import empty_backbone
from dlm.models.sizes import SIZES
from tests.threads import threads

pytestmark = pytest.mark.bits

LENGTHS = (1, 33, 2, 7, 4, 17, 32)
"""Windows of one batch, 96 rows in all."""


def one_layer(width: int, dtype: torch.dtype) -> Backbone:
    config = replace(
        SIZES["8b"],
        hidden_size=width,
        intermediate_size=width,
        num_layers=1,
        num_heads=width // 128,
        num_kv_heads=width // 256,
        head_dim=128,
        vocab_size=64,
        max_positions=64,
    )
    backbone = empty_backbone(config, dtype, "cpu")
    backbone.initialize(1)
    return backbone.eval().requires_grad_(False)


def packed(backbone: Backbone, lengths: tuple[int, ...], first: int) -> Tensor:
    """Hidden states of windows laid end to end; the tokens of each follow from its place among all."""
    segments, tokens = [], []
    for place, length in enumerate(lengths, first):
        segments.append(Segment(sum(len(one) for one in tokens), length))
        tokens.append(torch.arange(length) * (place + 3) % 63)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return backbone(torch.cat(tokens), positions, SdpaAttention(segments))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1024, 2048, 4096])
@torch.inference_mode()
def test_windows_have_the_same_bits_together_and_alone(width: int, dtype: torch.dtype, count: int) -> None:
    with threads(count):
        backbone = one_layer(width, dtype)
        together = torch.split(packed(backbone, LENGTHS, 0), list(LENGTHS))
        for place, (length, mine) in enumerate(zip(LENGTHS, together, strict=True)):
            assert torch.equal(packed(backbone, (length,), place), mine)
