"""The Triton kernel against the torch code, on vocabularies as models have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlm.decoding.cuda import fused_argmax as fused
from dlm.decoding.scoring.proposals import Proposals, ScoreSpec, score
from dlm.decoding.scoring.rows import Rows
from tests.gpu import CUDA, ON_CUDA

pytestmark = [*ON_CUDA, pytest.mark.skipif(not fused.available(), reason="needs triton")]


class GivenLogits:
    embedding = nn.Embedding(1, 1)

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("columns", [509, 4096, 126_464, 157_184])
@pytest.mark.parametrize("spread", [0.3, 3.0, 20.0])
@pytest.mark.parametrize("banned", [(), (1,), (508, 0)], ids=["free", "one", "two"])
def test_tokens_are_equal_and_odds_to_rounding(
    dtype: torch.dtype, columns: int, spread: float, banned: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(columns)
    logits = (torch.randn(96, columns, device=CUDA) * spread).to(dtype)
    logits[0], logits[1, 3:] = 0.0, -torch.inf
    assert fused.fusible(logits)
    spec, results = ScoreSpec("low_confidence", banned=banned), []
    for fuse in (True, False):
        if not fuse:
            monkeypatch.setattr(fused, "fusible", lambda logits: False)
        table, _ = score(GivenLogits(), Rows(logits.clone()), spec, 64)
        results.append(Proposals.from_table(table.cpu().numpy(), spec))
    mine, theirs = results
    assert np.array_equal(mine.tokens, theirs.tokens)
    np.testing.assert_allclose(mine.log_odds, theirs.log_odds, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mine.logprobs, theirs.logprobs, rtol=1e-4, atol=1e-5)


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    logits = (torch.randn(64, 126_464, device=CUDA) * 3).bfloat16()
    tokens, others = fused.argmax(logits, ())
    for row in (0, 17, 63):
        token, other = fused.argmax(logits[row : row + 1], ())
        assert int(token) == int(tokens[row])
        assert float(other) == float(others[row])


def test_nan_is_not_hidden() -> None:
    logits = torch.randn(3, 5000, device=CUDA).bfloat16()
    logits[1, 4321] = torch.nan
    tokens, others = fused.argmax(logits, ())
    assert others.isnan().tolist() == [False, True, False]
    assert bool((tokens < 5000).all())
