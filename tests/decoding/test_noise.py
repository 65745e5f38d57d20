"""Temperature sampling draws from softmax(logits / T), by a test that wrong noise fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dlm.decoding import noise
from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import Full
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Fixed
from dlm.decoding.scoring import proposals as scoring
from dlm.models.attention import NaiveAttention
from dlm.models.attention.segments import Segment
from dlm.models.backbone import BackboneConfig
from dlm.models.families import SpecialTokens
from dlm.models.io.loading import empty_backbone

VOCAB = 12
DRAWS = 40_000
LOGITS = torch.linspace(-2.0, 2.5, VOCAB)[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(3))]


class FixedLogits:
    """A head that gives every row the same logits."""

    embedding = torch.nn.Embedding(VOCAB, 1)

    def head(self, hidden: Tensor) -> Tensor:
        return LOGITS.repeat(hidden.shape[0], 1)


def keys(how: str) -> Tensor:
    """Keys that differ in one part only: position, step, sample or seed."""
    index = np.arange(DRAWS)
    if how == "position":
        words = noise.keys(5, 0, 1, index)
    else:
        parts = {"step": lambda i: (5, 0, i), "sample": lambda i: (5, i, 1), "seed": lambda i: (i, 0, 1)}[how]
        words = np.concatenate([noise.keys(*parts(int(i)), np.array([7])) for i in index])
    return torch.from_numpy(words.view(np.int64))


def counts(row_keys: Tensor, spec: scoring.ScoreSpec) -> np.ndarray:
    rows = scoring.Rows(torch.zeros(len(row_keys), 1), keys=row_keys)
    table, _ = scoring.score(FixedLogits(), rows, spec, 4096)
    return np.bincount(table[0].long().numpy(), minlength=VOCAB)


def p_value(observed: np.ndarray, probability: np.ndarray) -> float:
    kept = probability > 0
    assert observed[~kept].sum() == 0
    expected = probability[kept] / probability[kept].sum() * observed.sum()
    return float(stats.chisquare(observed[kept], expected).pvalue)


def softmax(temperature: float) -> np.ndarray:
    return (LOGITS.double() / temperature).softmax(-1).numpy()


@pytest.mark.parametrize("how", ["position", "step", "sample", "seed"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax(how: str, temperature: float) -> None:
    observed = counts(keys(how), scoring.ScoreSpec("low_confidence", temperature))
    assert p_value(observed, softmax(temperature)) > 1e-3


def test_top_k_and_top_p_cut_before_the_draw() -> None:
    order = np.argsort(-softmax(1.0))
    top = np.zeros(VOCAB)
    top[order[:4]] = softmax(1.0)[order[:4]]
    observed = counts(keys("position"), scoring.ScoreSpec("low_confidence", 1.0, top_k=4))
    assert p_value(observed, top) > 1e-3

    share = softmax(1.0)[order].cumsum()
    kept = order[: int(np.searchsorted(share, 0.8)) + 1]
    nucleus = np.zeros(VOCAB)
    nucleus[kept] = softmax(1.0)[kept]
    observed = counts(keys("position"), scoring.ScoreSpec("low_confidence", 1.0, top_p=0.8))
    assert p_value(observed, nucleus) > 1e-3


@pytest.mark.parametrize("wrong", ["uniform", "normal", "scaled", "shared"])
def test_wrong_noise_fails_the_same_test(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true_gumbel = noise.gumbel
    fakes = {
        "uniform": lambda k, v: torch.rand(len(k), v, dtype=torch.float64),
        "normal": lambda k, v: torch.randn(len(k), v, dtype=torch.float64),
        "scaled": lambda k, v: true_gumbel(k, v) * 1.05,
        "shared": lambda k, v: true_gumbel(k[:1], v).expand(len(k), v),
    }
    monkeypatch.setattr(scoring, "gumbel", fakes[wrong])
    assert p_value(counts(keys("position"), scoring.ScoreSpec("low_confidence", 1.0)), softmax(1.0)) < 1e-6


def test_samples_of_a_request_follow_the_model() -> None:
    """End to end: 4,000 samples of one position, against the model's own distribution without the mask."""
    config = BackboneConfig(VOCAB, 16, 32, 1, 2, 2, 8, 1e-5, 10000.0, 8)
    model = empty_backbone(config, torch.float32, "cpu")
    model.initialize(1)
    model.lm_head.weight.data.mul_(40)
    special = SpecialTokens(mask_id=VOCAB - 1, eos_id=0)
    params = SamplingParams(gen_length=1, steps=1, block_length=1, temperature=0.8, seed=11, n=4000)
    request = Request("one", (3, 4), params, Full(), Fixed())
    drawn = [c.canvas_ids[0] for c in Decoder(model, special, DecoderOptions(max_num_seqs=512)).run([request])]
    with torch.no_grad():
        ids = torch.tensor([3, 4, VOCAB - 1])
        hidden = model(ids, torch.arange(3), NaiveAttention([Segment(0, 3)]))
        logits = model.head(hidden)[-1].double() / 0.8
    logits[VOCAB - 1] = -torch.inf
    assert logits.softmax(-1).max() < 0.9
    assert p_value(np.bincount(drawn, minlength=VOCAB), logits.softmax(-1).numpy()) > 1e-3


def test_noise_is_the_same_on_host_and_in_any_batch() -> None:
    words = torch.from_numpy(noise.keys(1, 2, 3, np.arange(9)).view(np.int64))
    whole = noise.gumbel(words, 64)
    assert all(torch.equal(whole[i : i + 1], noise.gumbel(words[i : i + 1], 64)) for i in range(9))
    assert len(torch.unique(whole)) == whole.numel()
    assert noise.keys(1, 2, 3, np.arange(9))[4] == noise.keys(1, 2, 3, np.array([4]))[0]
