"""The one-pass kernel, run from its source on a CPU, finds the tokens and odds of the torch code."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlm.decoding.cuda import fused_argmax as fused
from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions
from dlm.decoding.samplers import Credit, Fixed, Hierarchy, Klass, Threshold
from dlm.decoding.scoring import proposals as scoring
from dlm.decoding.scoring.proposals import Proposals, ScoreSpec, score
from dlm.decoding.scoring.rows import Rows
from tests.decoding.cuda import stand_in_triton
from tests.decoding.cuda.test_graphs import asked
from tests.decoding.worlds import tiny_model
from tests.rounding import of_products


class GivenLogits:
    """A head that gives the logits it is handed as hidden states."""

    embedding = nn.Embedding(1, 1)

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The fused path on this device, in small blocks; the numbers of rows that it took."""
    kernel, taken = stand_in_triton.kernel(monkeypatch), list[int]()

    def fusible(logits: Tensor) -> bool:
        taken.append(len(logits))
        return logits.dtype in (torch.bfloat16, torch.float16)

    monkeypatch.setattr(fused, "_kernel", lambda: kernel)
    monkeypatch.setattr(fused, "BLOCK", 64)
    monkeypatch.setattr(fused, "fusible", fusible)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return taken


def drawn_logits(rows: int, columns: int, dtype: torch.dtype, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return (torch.randn(rows, columns, generator=generator) * spread).to(dtype)


def tables(logits: Tensor, spec: ScoreSpec, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the fused path and the torch code make of the same logits, `[6, rows]` each."""
    results = []
    for fuse in (True, False):
        with monkeypatch.context() as patch:
            if not fuse:
                patch.setattr(fused, "fusible", lambda logits: False)
            results.append(score(GivenLogits(), Rows(logits.clone()), spec, 7)[0])
    return results


def both(logits: Tensor, spec: ScoreSpec, monkeypatch: pytest.MonkeyPatch) -> tuple[Proposals, Proposals]:
    """The same, as proposals."""
    mine, theirs = (Proposals.from_table(table.numpy(), spec) for table in tables(logits, spec, monkeypatch))
    return mine, theirs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("columns", [3, 64, 65, 509, 1000])
@pytest.mark.parametrize("spread", [0.3, 3.0, 40.0])
def test_tokens_are_equal_and_odds_to_rounding(
    dtype: torch.dtype, columns: int, spread: float, on_a_cpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Low spreads in half precision are full of ties: the lowest id."""
    logits = drawn_logits(16, columns, dtype, spread)
    for banned in ((), (2,), (1, 0)):
        mine, theirs = both(logits, ScoreSpec("low_confidence", banned=banned), monkeypatch)
        assert np.array_equal(mine.tokens, theirs.tokens)
        assert not np.isin(mine.tokens, banned).any()
        for ours, others in (
            (mine.log_odds, theirs.log_odds),
            (mine.logprobs, theirs.logprobs),
            (mine.priority, theirs.priority),
        ):
            rounding = of_products(torch.float32, columns)
            np.testing.assert_allclose(ours, others, rtol=rounding, atol=rounding)
    assert on_a_cpu


@pytest.mark.usefixtures("on_a_cpu")
def test_odds_keep_their_digits_where_the_probability_rounds_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.zeros(3, 200, dtype=torch.bfloat16)
    logits[0, 150], logits[1, 3], logits[2, 199] = 40.0, 40.0, 90.0
    mine, theirs = both(logits, ScoreSpec("low_confidence"), monkeypatch)
    assert mine.tokens.tolist() == [150, 3, 199]
    expected = np.log(199) - np.array([40.0, 40.0, 90.0])
    rounding = of_products(torch.float32, logits.shape[1])
    np.testing.assert_allclose(mine.log_odds, expected, rtol=0.0, atol=rounding)
    np.testing.assert_allclose(theirs.log_odds[:2], expected[:2], rtol=0.0, atol=rounding)


@pytest.mark.usefixtures("on_a_cpu")
def test_infinite_logits_and_rows_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of -inf before, between or behind the others; a row of nothing else; an overflow to +inf."""
    inf = torch.inf
    logits = torch.full((6, 200), -inf, dtype=torch.float16)
    logits[0, 130] = 1.0
    logits[1, [5, 190]] = torch.tensor([1.0, 2.0], dtype=torch.float16)
    logits[2] = 0.5
    logits[3, 64:128] = torch.linspace(-3, 3, 64).half()
    logits[4] = 1.0
    logits[4, 70] = inf
    mine, theirs = tables(logits, ScoreSpec("low_confidence", banned=(199,)), monkeypatch)
    assert mine[0].tolist() == theirs[0].tolist() == [130, 190, 0, 127, 70, 0]
    assert theirs[3].isnan().tolist() == mine[2].isnan().tolist() == [False] * 4 + [True] * 2
    torch.testing.assert_close(mine[2, :4], theirs[2, :4], rtol=of_products(torch.float32, 200), atol=0.0)


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("column", [0, 70, 199])
def test_nan_is_not_hidden(column: int) -> None:
    logits = drawn_logits(4, 200, torch.bfloat16, 3.0)
    logits[2, column] = torch.nan
    table, _ = score(GivenLogits(), Rows(logits), ScoreSpec("low_confidence"), 16)
    assert table[2].isnan().tolist() == [False, False, True, False]
    assert 0 <= int(table[0, 2]) < 200


def test_logits_that_are_a_part_of_something_else(on_a_cpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows lie further apart than they are long."""
    wide = drawn_logits(9, 300, torch.bfloat16, 3.0)
    mine, _ = both(wide[2:, :130], ScoreSpec("low_confidence"), monkeypatch)
    tokens, others = fused.argmax(wide[2:, :130], ())
    assert np.array_equal(tokens.numpy(), mine.tokens)
    assert bool((others > 0).all())
    assert sum(on_a_cpu) == 7


def test_only_what_needs_no_more_is_fused() -> None:
    plain = ScoreSpec("low_confidence")
    assert plain.greedy_odds
    for change in ({"ranks_by": "random"}, {"banned": (1,)}, {"banned": (1, 2)}, {"record": True}, {"cfg_scale": 1.0}):
        assert replace(plain, **change).greedy_odds
    changes: list[dict[str, Any]] = [
        {"ranks_by": "entropy"},
        {"ranks_by": "margin"},
        {"temperature": 0.5},
        {"boosted": True},
    ]
    changes += [{"deferred": (1,)}, {"observe": "log_probabilities"}, {"banned": (1, 2, 3)}]
    changes += [{"record": True, "banned": (1,)}]
    for change in changes:
        assert not replace(plain, **change).greedy_odds, change


def test_full_precision_and_other_devices_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "available", lambda: True)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert not fused.fusible(torch.zeros(2, 8, dtype=dtype))
    assert scoring.fused is fused


@pytest.mark.parametrize("sampler", [Fixed(), Threshold(0.3), Hierarchy(0.5, 0.2), Credit(0.3), Klass(0.2)])
def test_decodes_are_the_same(sampler: Any, on_a_cpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16; samplers that boost or track go through the torch code in forwards where they need more."""
    model, results = tiny_model("bfloat16"), []
    for fuse in (True, False):
        if not fuse:
            monkeypatch.setattr(fused, "fusible", lambda logits: False)
        decoder = Decoder(model.backbone, model.special, DecoderOptions(max_num_seqs=4, arena_tokens=600))
        completions = decoder.run(asked(3, sampler=sampler, length=16))
        results.append({one.request_id: one for one in completions})
    for name, mine in results[0].items():
        theirs = results[1][name]
        assert (mine.canvas_ids, mine.step_map, mine.nfe) == (theirs.canvas_ids, theirs.step_map, theirs.nfe)
        rounding = of_products(torch.float32, model.backbone.config.vocab_size)
        assert mine.logprobs == pytest.approx(theirs.logprobs, rel=rounding, abs=rounding)
    assert on_a_cpu
