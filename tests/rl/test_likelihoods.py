"""What stands for the log-probability of a token in a loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dlm.likelihood import Coupled, D1OneStep
from dlm.rl.likelihoods import StepMap, token_logprobs
from tests.rl.subjects import FAMILIES, PROMPTS, WARM, rollouts_of

SIMPLE = replace(WARM, algorithm="basic", steps=6)


def test_by_step_map_they_are_what_the_decoder_recorded():
    rollouts = rollouts_of()
    batch = rollouts.generate(PROMPTS, SIMPLE, n=2)
    for rollout, found in zip(batch, token_logprobs(StepMap(), rollouts.likelihood, batch, seeds=[0] * 6), strict=True):
        assert found.tolist() == list(rollout.logprobs_raw)


@pytest.mark.parametrize("scheme", [D1OneStep(), Coupled()], ids=lambda scheme: scheme.name)
def test_by_a_scheme_they_are_its_terms_up_to_the_last_token_that_was_revealed(scheme):
    rollouts = rollouts_of()
    [first, *_] = rollouts.generate(PROMPTS, SIMPLE)
    kept = 10
    cut = replace(first, replay_token_ids=first.replay_token_ids[:kept] + (first.mask_id,) * 14)
    [found] = token_logprobs(scheme, rollouts.likelihood, [cut], seeds=[5])
    scores = rollouts.score(first.prompt_ids, first.replay_token_ids[:kept], scheme=scheme, seed=5, per_token=True)
    assert found.tolist() == scores.per_token[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choice", [StepMap(2), D1OneStep(0.3), Coupled()], ids=["step_map", "d1_onestep", "coupled"])
def test_the_gradient_is_the_slope(family, choice):
    """Along a random direction, against a difference of two values, in float64."""
    rollouts = rollouts_of(family)
    backbone = rollouts.checkpoint.backbone.double().requires_grad_(True)
    batch = rollouts.generate(PROMPTS[:2], WARM)

    def total(gradients: bool) -> torch.Tensor:
        each = token_logprobs(choice, rollouts.likelihood, batch, seeds=[3, 4], gradients=gradients)
        return torch.cat(each).sum()

    total(True).backward()
    generator = torch.Generator().manual_seed(0)
    steps = [(one, torch.randn(one.shape, generator=generator, dtype=one.dtype)) for one in backbone.parameters()]
    slope = sum(float((one.grad * along).sum()) for one, along in steps if one.grad is not None)
    width, values = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for one, along in steps:
                one += sign * width * along
            values.append(float(total(False)))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * width), rel=1e-4, abs=1e-4)
