"""With `deterministic` every product has the same number of rows, the weights are shared, and half precision too gives
the same bits in every batch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import BlockCausal, DualCache
from dlm.decoding.options import DecoderOptions
from dlm.decoding.request import Request, SamplingParams
from dlm.decoding.samplers import LLaDA2, Threshold
from dlm.models.deterministic import CPU_TILE, deterministic_copy
from dlm.models.loading import random_checkpoint

PAIRS: list[Any] = [
    pytest.param("tiny", DualCache(), Threshold(0.3), id="dense"),
    pytest.param("tiny_moe", DualCache(), Threshold(0.3), id="moe"),
    pytest.param("tiny_llada2", BlockCausal(), LLaDA2(0.3), id="llada2"),
]


def requests(engine: Any, sampler: Any) -> list[Request]:
    draw, asked = random.Random(0), []
    for index in range(12):
        prompt = tuple(draw.randrange(500) for _ in range(draw.randint(3, 60)))
        block = draw.choice([4, 8, 16])
        params = SamplingParams(gen_length=32, block_length=block, temperature=0.7, seed=index, record=True)
        asked.append(Request(str(index), prompt, params, engine, sampler))
    return asked


@pytest.mark.parametrize(("size", "engine", "sampler"), PAIRS)
def test_half_precision_has_the_same_bits_in_every_batch(
    size: str, engine: Any, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: set[int] = set()
    linear = F.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows.add(x.shape[0])
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", counted)
    model = random_checkpoint(size, seed=3, dtype="bfloat16")
    results = []
    for seqs in (1, 5, 12):
        options = DecoderOptions(max_num_seqs=seqs, arena_tokens=4096, deterministic=True)
        completions = Decoder(model.backbone, model.special, options).run(requests(engine, sampler))
        results.append({one.request_id: (one.canvas_ids, str(one.logprobs)) for one in completions})
    assert results[0] == results[1] == results[2]
    assert rows == {CPU_TILE}


@pytest.mark.parametrize("size", ["tiny", "tiny_moe", "tiny_llada2", "tiny_dream", "tiny_nemotron"])
def test_the_copy_shares_its_weights_and_computes_the_same(size: str) -> None:
    from dlm.models.attention import SdpaAttention
    from dlm.models.segments import Segment

    backbone = random_checkpoint(size, seed=1, dtype="float64").backbone
    copy = deterministic_copy(backbone)
    theirs = dict(backbone.named_parameters())
    assert all(one.data_ptr() == theirs[name].data_ptr() for name, one in copy.named_parameters())
    tokens, positions = torch.arange(45) % 500, torch.arange(45)
    with torch.inference_mode():
        ours, plain = (one(tokens, positions, SdpaAttention([Segment(0, 45)])) for one in (copy, backbone))
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(copy.head(ours), backbone.head(ours), rtol=1e-10, atol=1e-10)
