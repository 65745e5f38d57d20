"""What is recorded of the distributions behind the tokens is what their definitions give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dlm.decoding import noise
from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import DualCache, Full
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Fixed, Threshold
from dlm.decoding.scoring.proposals import Proposals, ScoreSpec, score
from dlm.decoding.scoring.rows import Rows
from dlm.errors import RequestError
from tests.decoding.cuda.test_fused_argmax import GivenLogits
from tests.decoding.worlds import BY_NAME
from tests.likelihood.models import MASK, naive, small
from tests.rounding import of_products

VOCAB = 300


def drawn_logits(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return (torch.randn(rows, VOCAB, generator=generator, dtype=torch.float64) * 3).to(dtype)


def proposals(logits: Tensor, spec: ScoreSpec) -> Proposals:
    keys = None
    if spec.temperature:
        keys = torch.from_numpy(noise.keys(1, 2, 3, np.arange(len(logits))).view(np.int64))
    table, _ = score(GivenLogits(), Rows(logits.clone(), keys=keys), spec, 7)
    return Proposals.from_table(table.numpy(), spec)


def filtered(logits: Tensor, temperature: float, top_k: int, top_p: float, banned: tuple[int, ...]) -> Tensor:
    """Log-probabilities by the definition: token by token, from the most probable on."""
    result = torch.full_like(logits, -torch.inf, dtype=torch.float64)
    for row, values in enumerate(logits.double()):
        warm = values / temperature
        warm[list(banned)] = -torch.inf
        order = warm.sort(descending=True, stable=True).indices.tolist()
        kept = [token for token in order if not top_k or warm[token] >= warm[order[top_k - 1]]]  # ties stay
        share = warm[kept].softmax(0).tolist()
        count = 1
        while count < len(kept) and sum(share[:count]) < top_p:
            count += 1
        result[row, kept[:count]] = warm[kept[:count]].log_softmax(0)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "banned"),
    [(1.0, 0, 1.0, ()), (0.6, 5, 1.0, ()), (1.7, 0, 0.8, (3,)), (1.0, 40, 0.5, (7, 8)), (0.3, 1, 1.0, ())],
)
def test_measures_are_those_of_the_definition(
    dtype: torch.dtype, temperature: float, top_k: int, top_p: float, banned: tuple[int, ...]
) -> None:
    logits = drawn_logits(40, dtype)
    spec = ScoreSpec(
        "low_confidence",
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        banned=banned,
        record=True,
        token_stats=True,
    )
    found = proposals(logits, spec)
    assert found.token_stats is not None
    expected = filtered(logits, temperature, top_k, top_p, banned)[torch.arange(40), torch.from_numpy(found.tokens)]
    np.testing.assert_allclose(found.token_stats[0], expected.numpy(), atol=1e-9)
    plain = logits.double().log_softmax(-1)
    rounding = of_products(torch.float32, VOCAB) * float(plain.abs().max())
    np.testing.assert_allclose(found.token_stats[1], -(plain.exp() * plain).sum(-1).numpy(), rtol=0.0, atol=rounding)
    without = proposals(logits, replace(spec, token_stats=False))
    assert without.token_stats is None
    assert np.array_equal(without.tokens, found.tokens)
    assert np.array_equal(without.logprobs, found.logprobs)


def test_nothing_is_drawn_at_temperature_0() -> None:
    found = proposals(drawn_logits(9), ScoreSpec("entropy", record=True, token_stats=True))
    assert found.token_stats is not None
    assert found.token_stats[0].tolist() == [0.0] * 9
    assert (found.token_stats[1] > 0).all()


def test_entropy_of_rows_with_forbidden_tokens_is_finite() -> None:
    """A logit of -inf has no share; a row with one token left has no entropy."""
    logits = torch.full((2, VOCAB), -torch.inf)
    logits[0, 5] = 3.0
    logits[1, [4, 6]] = 1.0
    found = proposals(logits, ScoreSpec("low_confidence", record=True, token_stats=True))
    assert found.token_stats is not None
    rounding = of_products(torch.float32, VOCAB)
    np.testing.assert_allclose(found.token_stats[1], [0.0, np.log(2)], rtol=0.0, atol=rounding)


PARAMS = SamplingParams(12, steps=12, block_length=6, temperature=0.8, top_k=4, seed=5, record=True, ignore_eos=True)


def decoded(request: Request) -> Completion:
    model = small("llada")
    (completion,) = Decoder(model.backbone, model.special).run([request])
    assert completion.error is None
    return completion


def test_the_decoder_records_them_at_the_revealing_forward() -> None:
    """Recomputed from the canvas that each forward saw."""
    prompt, model = (1, 2, 3), small("llada")
    completion = decoded(Request("r", prompt, PARAMS, Full(), Fixed("random"), token_stats=True))
    steps, tokens, first = completion.step_map or (), completion.canvas_ids, 0
    for place, (token, step) in enumerate(zip(tokens, steps, strict=True)):
        seen = [*prompt, *(known if when < step else MASK for known, when in zip(tokens, steps, strict=True))]
        with torch.no_grad():
            logprobs = naive(model, seen)[len(prompt) + place]
        # Where nothing but masks was proposed, the step was asked again without the mask.
        drawn = [float(filtered(logprobs.unsqueeze(0), 0.8, 4, 1.0, banned)[0, token]) for banned in ((), (MASK,))]
        gaps = [abs((completion.logprobs_processed or ())[place] - each) for each in drawn]
        assert min(gaps) < 1e-9
        first += gaps[0] < 1e-9
        assert (completion.entropies or ())[place] == pytest.approx(float(-(logprobs.exp() * logprobs).sum()), abs=1e-9)
    assert first >= 6
    assert len(set(completion.entropies or ())) > 6


def test_they_are_recorded_only_where_asked_and_change_nothing() -> None:
    asked = Request("r", (1, 2, 3), PARAMS, DualCache(), Threshold(0.4))
    plain, token_stats = decoded(asked), decoded(replace(asked, token_stats=True))
    assert (plain.logprobs_processed, plain.entropies) == (None, None)
    assert plain.canvas_ids == token_stats.canvas_ids
    assert plain.logprobs == token_stats.logprobs
    assert token_stats.logprobs_processed is not None
    assert min(token_stats.logprobs_processed) < 0


def test_one_step_may_hold_some_that_are_measured_and_some_that_are_not() -> None:
    decoder = BY_NAME["golden"].decoder()
    params = replace(PARAMS, n=2)
    asked = [Request(str(i), (5, 6, 7), params, Full(), Threshold(0.5), token_stats=i % 2 == 0) for i in range(4)]
    found = list(decoder.run(asked))
    assert len({completion.canvas_ids for completion in found}) == 2
    assert {int(one.request_id) % 2 for one in found if one.entropies is not None} == {0}


def test_measures_without_record_are_refused() -> None:
    request = Request("r", (1, 2), replace(PARAMS, record=False), Full(), Fixed(), token_stats=True)
    with pytest.raises(RequestError, match="token_stats=True requires record=True"):
        BY_NAME["golden"].decoder().check(request)
