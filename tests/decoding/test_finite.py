"""Logits that are not finite where they are read end their request, whatever decodes it, and no other."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlm.decoding.engines import Full
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Fixed
from dlm.decoding.scoring.proposals import Proposals, ScoreSpec, score
from dlm.decoding.scoring.rows import Rows
from dlm.errors import NotFiniteError, RequestError
from dlm.likelihood import Ar, Likelihood, LladaMC
from dlm.models.arithmetic import PROVED
from tests.decoding.damage import damage
from tests.decoding.drawing import draw_request, facts
from tests.decoding.worlds import BY_NAME, WORLDS, World

VOCAB = 256
SPECS = {
    "greedy": ScoreSpec("low_confidence"),
    "banned": ScoreSpec("low_confidence", banned=(5, 6)),
    "many banned": ScoreSpec("low_confidence", banned=(5, 6, 7, 8)),
    "deferred": ScoreSpec("low_confidence", deferred=(9,)),
    "recorded": ScoreSpec("low_confidence", record=True, banned=(5,), deferred=(9,)),
    "entropy": ScoreSpec("entropy"),
    "margin": ScoreSpec("margin"),
    "random": ScoreSpec("random"),
    "warm": ScoreSpec("low_confidence", temperature=0.7, record=True, token_stats=True),
    "top_k": ScoreSpec("low_confidence", temperature=1.0, top_k=50),
    "top_p": ScoreSpec("low_confidence", temperature=1.0, top_p=0.9),
    "guided": ScoreSpec("low_confidence", cfg_scale=1.5),
}


class Through(nn.Module):
    """A head whose logits are its hidden states."""

    arithmetic = PROVED
    embedding = nn.Embedding(VOCAB, VOCAB)

    def head(self, hidden: Tensor) -> Tensor:
        return hidden.clone()


def proposals(logits: Tensor, spec: ScoreSpec) -> Proposals:
    keys = torch.arange(len(logits)) if spec.temperature else None
    uncond = torch.zeros_like(logits) if spec.cfg_scale else None
    table, _ = score(Through(), Rows(logits, uncond, keys), spec, 1024)
    return Proposals.from_table(table.numpy(), spec)


def some_logits(dtype: torch.dtype) -> Tensor:
    return torch.randn(9, VOCAB, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("column", [0, 9, 200])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_with_one_such_logit_is_seen(value: float, column: int, spec: ScoreSpec, dtype: torch.dtype) -> None:
    logits = some_logits(dtype)
    logits[4, column] = value
    assert proposals(logits, spec).unsound.tolist() == [row == 4 for row in range(9)]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_row_of_nothing_but_such_logits_is_seen(spec: ScoreSpec) -> None:
    for value in (np.nan, np.inf, -np.inf):
        logits = some_logits(torch.float32)
        logits[2] = value
        assert proposals(logits, spec).unsound.tolist() == [row == 2 for row in range(9)]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tokens_that_cannot_be_taken_are_no_fault(spec: ScoreSpec) -> None:
    logits = some_logits(torch.float32)
    logits[:, 100:] = -np.inf
    found = proposals(logits, spec)
    assert not found.unsound.any()
    assert found.tokens.max() < 100


def mix(world: World, seed: int, count: int) -> list[Request]:
    chance = random.Random(seed)
    return [draw_request(chance, f"r{index}", world.checkpoint()) for index in range(count)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_request_ends_and_its_neighbours_are_unharmed(world: World, seed: int) -> None:
    requests = mix(world, seed, 12)
    bad = {"r1", "r6", "r9"}
    decoder = world.decoder(max_num_seqs=12, arena_tokens=4000)
    damage(decoder, lambda canvas: canvas.request.id in bad, begin=1 + seed % 2, value=np.nan if seed < 2 else np.inf)
    done = list(decoder.run(requests))
    for request in requests:
        mine = [one for one in done if one.request_id == request.id]
        alone = list(world.decoder(arena_tokens=4000).run([request]))
        if request.id not in bad or all(one.nfe < 1 + seed % 2 for one in alone):
            assert sorted(map(facts, mine)) == sorted(map(facts, alone))
            continue
        assert mine[-1].fault == "not_finite"
        assert mine[-1].token_ids == ()
        assert "not finite in forward" in str(mine[-1].error)
        assert all(one.error is None for one in mine[:-1])
    assert decoder.arena.ranges.num_taken == 0
    assert {one.request_id for one in done if one.error} <= bad


def test_the_error_names_position_forward_and_way_out() -> None:
    world = BY_NAME["llada"]
    params = SamplingParams(gen_length=8, block_length=8, steps=8, temperature=0.0)
    ways: list[tuple[dict[str, Any], str]] = [({}, "dtype=float32"), ({"cfg_scale": 2.0}, "lower cfg_scale=2.0")]
    for extra, way in ways:
        asked = Request("bad", (1, 2, 3), replace(params, **extra), Full(), Fixed())
        decoder = world.decoder()
        damage(decoder, lambda canvas: True)
        [ended] = decoder.run([asked])
        assert "the logits of position 3 are not finite in forward 1" in str(ended.error)
        assert way in str(ended.error)


def test_given_tokens_are_not_scored_by_such_logits() -> None:
    checkpoint = BY_NAME["llada"].checkpoint()
    likelihood = Likelihood(checkpoint.backbone, checkpoint.special)
    head = checkpoint.backbone.head

    def damaged(hidden: Tensor) -> Tensor:
        logits = head(hidden)
        logits[0, 3] = np.nan
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.backbone, "head", damaged)
        with pytest.raises(NotFiniteError, match="completion 0: the model's logits are not finite"):
            likelihood.score([[1, 2]], [[3, 4]], LladaMC(mc_num=2))
        with pytest.raises(NotFiniteError):
            list(likelihood.score_in_slices([1, 2], [3, 4], Ar()))
        with pytest.raises(NotFiniteError, match="canvas 0"):
            likelihood.replay_logprobs([1, 2], [3, 4], [1, 2])


HUGE = 10**400


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-7},
        {"temperature": HUGE},
        {"cfg_scale": 1e308},
        {"cfg_scale": HUGE},
        {"top_p": HUGE},
        {"top_p": np.nan},
        {"top_k": HUGE},
        {"n": HUGE},
        {"max_tokens": HUGE},
        {"max_nfe": HUGE},
        {"seed": HUGE},
        {"seed": 10**5000},
        {"gen_length": HUGE},
        {"initial_gen_length": 8, "eos_check_tokens": HUGE},
        {"initial_gen_length": 8, "expansion_factor": HUGE},
    ],
    ids=lambda given: next(reversed(given)),
)
def test_numbers_beyond_sense_are_refused_in_few_words(given: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**given)
    assert list(given)[-1] in str(caught.value)
    assert len(str(caught.value)) < 400
