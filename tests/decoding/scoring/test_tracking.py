"""`klass` sees how far distributions have moved, and what a canvas keeps for it fits into the memory plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dlm.decoding.canvas import Canvas
from dlm.decoding.engines import DualCache, Engine, Full, Smooth
from dlm.decoding.memory import Limits, kept_bytes
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Klass, Sampler, Threshold
from dlm.decoding.types import Scores, StepContext
from dlm.models.attention import NaiveAttention
from dlm.models.attention.segments import Segment
from tests.decoding.worlds import BY_NAME, World

GOLDEN = BY_NAME["golden"]


@dataclass(frozen=True)
class Watched(Klass):
    """`klass` that tells what it was shown."""

    seen: list[Scores] = field(default_factory=list)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Any, Any]:
        self.seen.append(scores)
        return super().select(scores, context, memory)


def log_probabilities(world: World, canvas: Canvas) -> Tensor:
    """`[length, vocab]` of the canvas as it stands, from a plain forward (two, when guided)."""
    model = world.checkpoint("float64")
    logits = []
    for tokens in (canvas.tokens, np.where(canvas.given, canvas.mask_id, canvas.tokens))[: 1 + canvas.guided]:
        ids = torch.from_numpy(tokens.copy())
        hidden = model.backbone(ids, torch.arange(len(ids)), NaiveAttention([Segment(0, len(ids))]))
        logits.append(model.backbone.head(hidden))
    scale = canvas.request.params.cfg_scale
    mixed = logits[-1] + (scale + 1) * (logits[0] - logits[-1]) if canvas.guided else logits[0]
    return mixed.log_softmax(-1)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.8])
def test_divergence_is_that_of_two_plain_forwards(cfg_scale: float) -> None:
    sampler = Watched(0.5)
    params = SamplingParams(16, block_length=8, temperature=0.0, cfg_scale=cfg_scale, ignore_eos=True)
    decoder = GOLDEN.decoder("float64")
    decoder.add(Request("a", (5, 6, 7), params, Full(), sampler))
    before, block, told, fresh = None, -1, 0, 0
    with torch.inference_mode():
        while decoder.has_work:
            (canvas,) = decoder.scheduler.running or decoder._waiting
            now, index = log_probabilities(GOLDEN, canvas), canvas.block_index
            decoder.step()
            scores = sampler.seen[-1]
            if index != block or before is None:
                fresh += 1
                assert np.isinf(scores.divergence).all()
            else:
                told += 1
                moved = (now.exp() * (now - before)).sum(-1)[scores.positions].numpy()
                assert scores.divergence == pytest.approx(moved, rel=1e-6, abs=1e-9)
            before, block = now, index
    assert fresh == 2
    assert told >= 8


@pytest.mark.parametrize(
    ("engine", "sampler", "cfg_scale"),
    [(Full(), Klass(0.5), 0.0), (DualCache(), Klass(0.5), 1.0), (Smooth(DualCache()), Threshold(0.5), 0.0)],
)
def test_what_canvases_keep_is_within_the_plan(engine: Engine, sampler: Sampler, cfg_scale: float) -> None:
    """A block as long as the answer, so that all masks are tracked."""
    backbone = GOLDEN.checkpoint().backbone
    params = SamplingParams(60, block_length=60, temperature=0.0, cfg_scale=cfg_scale, n=4, seed=0, ignore_eos=True)
    decoder = GOLDEN.decoder(max_num_seqs=4, arena_tokens=2000)
    decoder.add(Request("a", (5, 6, 7, 8), params, engine, sampler))
    allowed = kept_bytes(backbone.config, backbone.dtype, Limits(64, 4, 8192, 0.9))
    most = 0
    while decoder.has_work:
        decoder.step()
        kept: dict[int, int] = {}
        for canvas in decoder.scheduler.running:
            for tensor in tensors_in(list(canvas.tensors.values())):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        most = max(most, sum(kept.values()))
    assert 0 < most <= allowed
    if cfg_scale:
        assert most > 0.9 * allowed


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor inside lists, tuples and objects."""
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values()
    return [tensor for part in parts for tensor in tensors_in(part)]
