"""What a row is scored as does not depend on the rows scored with it, at the vocabularies of real models."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlm.decoding import noise
from dlm.decoding.scoring.proposals import ScoreSpec, score
from dlm.decoding.scoring.rows import Rows
from dlm.likelihood import Ar, Likelihood
from dlm.models.arithmetic import PROVED
from dlm.models.families import SpecialTokens
from dlm.models.io.loading import empty_backbone
from dlm.models.sizes import SIZES
from tests.threads import threads

pytestmark = pytest.mark.bits

WIDTH, ROWS = 24, 96
VOCABULARIES = [32_003, 50_257, 126_464, 151_936, 157_184]
GREEDY = ScoreSpec("low_confidence")
SPECS = {
    "greedy": GREEDY,
    "recorded": ScoreSpec("low_confidence", record=True, banned=(7,), deferred=(9,)),
    "entropy": ScoreSpec("entropy", record=True),
    "margin": ScoreSpec("margin"),
    "warm": ScoreSpec("low_confidence", temperature=0.7, record=True, token_stats=True),
    "top_k": ScoreSpec("low_confidence", temperature=1.0, top_k=50),
    "top_p": ScoreSpec("low_confidence", temperature=1.0, top_p=0.9),
    "guided": ScoreSpec("low_confidence", cfg_scale=1.5),
    "divergence": ScoreSpec("low_confidence", observe="divergence"),
    "expected": ScoreSpec("low_confidence", observe="expected_embedding"),
}


class LastLayer(nn.Module):
    """The parts of a model that scoring needs."""

    arithmetic = PROVED

    def __init__(self, vocab: int, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(vocab)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(vocab, WIDTH, generator=generator).to(dtype))
        self.weight = torch.randn(WIDTH, vocab, generator=generator).to(dtype).t()

    def head(self, hidden: Tensor) -> Tensor:
        return PROVED.linear(hidden, self.weight)


@cache
def layer(vocab: int, dtype: torch.dtype) -> LastLayer:
    return LastLayer(vocab, dtype)


def rows_of(spec: ScoreSpec, dtype: torch.dtype) -> Rows:
    """`ROWS` rows that are scored by `spec`."""
    hidden, other = torch.randn(2, ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    keys = torch.from_numpy(noise.keys(3, 0, 1, np.arange(ROWS)).view(np.int64))
    return Rows(
        hidden,
        other if spec.cfg_scale else None,
        keys if spec.temperature else None,
        before=Rows(other) if spec.observe == "divergence" else None,
    )


def assert_company_does_not_matter(vocab: int, dtype: torch.dtype, name: str, counts: tuple[int, ...]) -> None:
    model, spec = layer(vocab, dtype), SPECS[name]
    rows = rows_of(spec, dtype)
    whole = rows.slice(0, max(counts) + 1)
    table, observed = score(model, whole, spec, 4096)
    for count in counts:
        first = max(counts) + 1 - count
        mine, also = score(model, whole.slice(first, first + count), spec, 8)
        assert torch.equal(mine, table[:, first:])
        assert observed is None or torch.equal(also, observed[first:])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_greedy_rows_at_every_vocabulary(vocab: int, dtype: torch.dtype, count: int) -> None:
    with threads(count):
        assert_company_does_not_matter(vocab, dtype, "greedy", (1, 2, 3, 9))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_rows_of_every_kind(name: str, count: int) -> None:
    with threads(count):
        assert_company_does_not_matter(50_257, torch.float32, name, (1, 2, 3, 6))


@torch.inference_mode()
def test_batches_of_every_length_up_to_96() -> None:
    with threads(2):
        assert_company_does_not_matter(32_003, torch.float32, "greedy", tuple(range(1, ROWS)))


@torch.inference_mode()
def test_a_lone_row_would_be_split_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: without rounding up, a row by itself gets other bits with two threads."""
    monkeypatch.setattr(Rows, "filled", lambda self, tile: self)
    with threads(2):
        model, rows = layer(126_464, torch.float32), rows_of(GREEDY, torch.float32)
        table, _ = score(model, rows.slice(0, 40), GREEDY, 4096)
        alone = torch.cat([score(model, rows.slice(i, i + 1), GREEDY, 4096)[0] for i in range(40)], dim=1)
    assert not torch.equal(alone, table)


@pytest.mark.parametrize("count", [1, 2])
def test_given_tokens_are_scored_alike_alone_and_together(count: int) -> None:
    backbone = empty_backbone(replace(SIZES["tiny"], vocab_size=50_257), torch.float32, "cpu")
    backbone.initialize(2)
    scorer = Likelihood(backbone.requires_grad_(False), SpecialTokens(50_256, None))
    prompts, texts = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]], [[11], [12, 13], [14, 15, 16, 17]]
    with threads(count):
        together = scorer.score(prompts, texts, Ar()).mean
        for index, pair in enumerate(zip(prompts, texts, strict=True)):
            [alone] = scorer.score([pair[0]], [pair[1]], Ar()).mean
            assert alone == together[index]
