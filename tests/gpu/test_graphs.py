"""Captured CUDA graphs against forwards made anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.decoding.cuda.graphs import CudaRecorder
from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import BlockCausal, DualCache, PrefixCache
from dlm.decoding.packing import Batch
from dlm.decoding.samplers import Fixed, LLaDA2, Threshold
from tests.gpu import CUDA, ON_CUDA
from tests.gpu.asking import asked, decoder_of, model_on_cuda

pytestmark = ON_CUDA

PAIRS: list[Any] = [
    pytest.param("small", DualCache(), Fixed(), id="dual_cache"),
    pytest.param("small", PrefixCache(), Threshold(0.3), id="prefix_cache"),
    pytest.param("tiny_dream", DualCache(), Threshold(0.3), id="dream"),
    pytest.param("tiny_sdar", BlockCausal(), Threshold(0.3), id="sdar"),
    pytest.param("tiny_llada2", BlockCausal(), LLaDA2(0.3), id="experts"),
]


class Doubled(Decoder):
    """Makes every recorded forward a second time, anew, and keeps how far the two are apart."""

    errors: list[float]

    def _forward(self, batch: Batch) -> Tensor:
        recorded = self.graphs.forward(batch)
        recorder, self.graphs.recorder = self.graphs.recorder, None
        recorded = None if recorded is None else recorded.clone()
        anew = super()._forward(batch)
        self.graphs.recorder = recorder
        if recorded is not None:
            error = (recorded.float() - anew.float()).norm() / anew.float().norm()
            self.errors.append(float(error))
        return anew


@pytest.mark.parametrize(("size", "engine", "sampler"), PAIRS)
@pytest.mark.parametrize("num_seqs", [1, 6])
def test_a_graph_gives_what_a_forward_gives(size: str, engine: Any, sampler: Any, num_seqs: int) -> None:
    model = model_on_cuda(size)
    decoder = decoder_of(model, max_num_seqs=num_seqs)
    if decoder.graphs.recorder is None:
        pytest.skip("experts are not grouped on this device")
    doubled = Doubled(model.backbone, model.special, decoder.options)
    doubled.errors = []
    completions = list(doubled.run(asked(10, engine, sampler)))
    assert len(completions) == 10
    print(
        f"{size}: {doubled.graphs.captures} captures, {doubled.graphs.replays} replays, worst {max(doubled.errors):.2e}"
    )
    assert len(doubled.errors) == doubled.graphs.replays >= doubled.graphs.captures > 0
    assert max(doubled.errors) < 2e-2


def test_enforce_eager_captures_nothing() -> None:
    """And most answers are the same: those that differ do so where bfloat16 rounds two tokens alike."""
    results = []
    for enforce_eager in (False, True):
        decoder = decoder_of(model_on_cuda("small"), max_num_seqs=4, enforce_eager=enforce_eager)
        results.append({one.request_id: one.canvas_ids for one in decoder.run(asked(16, DualCache(), Fixed()))})
        print(f"enforce_eager={enforce_eager}: {decoder.graphs.captures} captures, {decoder.graphs.replays} replays")
        assert (decoder.graphs.captures == 0) == enforce_eager
        assert (decoder.graphs.replays == 0) == enforce_eager
    equal = sum(results[0][name] == results[1][name] for name in results[0])
    print(f"{equal} of 16 answers equal")
    assert equal >= 8


def test_graphs_replay_in_any_order() -> None:
    """They share a memory pool: what one computes must not hang on which was played before."""
    recorder, buffers = CudaRecorder(CUDA), [torch.randn(300 * n, 64, device=CUDA) for n in (1, 3, 2)]
    weight, outputs = torch.randn(64, 64, device=CUDA), [torch.empty_like(each) for each in buffers]
    plays = []
    for buffer, output in zip(buffers, outputs, strict=True):

        def work(buffer: Tensor = buffer, output: Tensor = output) -> None:
            output.copy_(torch.tanh(buffer @ weight) @ weight)

        plays.append(recorder.record(work))
    for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
        for index in order:
            buffers[index].normal_()
            outputs[index].fill_(torch.nan)
            plays[index]()
            torch.testing.assert_close(outputs[index], torch.tanh(buffers[index] @ weight) @ weight)
