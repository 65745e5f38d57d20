"""The path with gradients: the values of the path without, and the derivatives of the definition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dlm.errors import RequestError
from dlm.likelihood import Ar, BlockCausal, Coupled, D1OneStep, Likelihood, LladaMC, Scheme
from dlm.models.backbone import Backbone
from tests.likelihood.models import FAMILIES, MASK, likelihood, naive, small
from tests.models.attention.windows import Mask, block_causal, causal, everything

PROMPT, CANVAS, STEPS = [1, 2, 3], [4, 5, 6, 7, 8], [1, 1, 3, 2, 3]
SCHEMES: tuple[Scheme, ...] = (LladaMC(5), D1OneStep(), Coupled(2), BlockCausal(), Ar())
CHECKED = ("embedding.weight", "layers.0.qkv.weight", "layers.1.attention_out.weight", "lm_head.weight")


@pytest.fixture(params=FAMILIES)
def scorer(request: pytest.FixtureRequest) -> Iterator[Likelihood]:
    """In batches so small that no text fits one of them with all its states."""
    made = likelihood(request.param, max_tokens=16)
    made.backbone.requires_grad_(True)
    yield made
    made.backbone.requires_grad_(False).zero_grad()


def parameters(backbone: Backbone) -> list[torch.nn.Parameter]:
    named = dict(backbone.named_parameters())
    return [named[name] for name in CHECKED]


def naive_replay(scorer: Likelihood) -> Tensor:
    """`[5]` by forwards over everything, with the graph."""
    family = next(family for family in FAMILIES if small(family).backbone is scorer.backbone)
    model, config = small(family), scorer.backbone.config
    terms = []
    for index, (token, step) in enumerate(zip(CANVAS, STEPS, strict=True)):
        place, mask = len(PROMPT) + index, everything
        state = [*PROMPT, *(known if when < step else MASK for known, when in zip(CANVAS, STEPS, strict=True))]
        row = place - 1 if config.shifted else place
        if config.attention == "block_causal":
            start = place // 4 * 4
            state, mask = [*PROMPT, *CANVAS][:start] + state[start : start + 4], block_causal(4)
        elif config.attention == "causal_context":
            start = len(PROMPT) + index // 4 * 4
            state = [*PROMPT, *CANVAS][:start] + state[start : start + 4]
            mask = after_causal(start)
            if place == start:
                state, mask, row = state[:start], causal, start - 1
        terms.append(naive(model, state, mask)[row, token])
    return torch.stack(terms)


def after_causal(start: int) -> Mask:
    return lambda query, key: (key <= query) | ((query >= start) & (key >= start))


def test_replay_has_the_gradients_of_the_definition(scorer: Likelihood) -> None:
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    ours = scorer.replay_logprobs(PROMPT, CANVAS, STEPS, gradients=True)
    definition = naive_replay(scorer)
    torch.testing.assert_close(ours, definition, atol=1e-10, rtol=0)
    pairs = zip(
        torch.autograd.grad((ours * weights).sum(), parameters(scorer.backbone)),
        torch.autograd.grad((definition * weights).sum(), parameters(scorer.backbone)),
        strict=True,
    )
    for mine, expected in pairs:
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(mine, expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_scores_have_the_gradients_of_finite_differences(scorer: Likelihood, scheme: Scheme) -> None:
    """Along one random direction of each checked parameter, by central differences of the path without gradients."""

    def mean(gradients: bool) -> Tensor:
        return scorer.score([PROMPT, [7]], [CANVAS, [2, 3]], scheme, seed=2, gradients=gradients).mean

    value = mean(True)
    torch.testing.assert_close(value.detach(), mean(False), atol=1e-10, rtol=0)
    gradients = torch.autograd.grad(value.sum(), parameters(scorer.backbone))
    generator = torch.Generator().manual_seed(0)
    for parameter, gradient in zip(parameters(scorer.backbone), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * parameter.detach().std()
        step, ends = 1e-6, []
        for sign in (1, -2, 1):
            with torch.no_grad():
                parameter += sign * step * direction
            ends.append(float(mean(False).sum()))
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=2e-4, abs=2e-4)


def test_plain_results_may_stand_in_a_loss(scorer: Likelihood) -> None:
    """As old log-probabilities do beside new ones; asking for a graph where none can be made is refused."""
    before = scorer.replay_logprobs(PROMPT, CANVAS, STEPS)
    assert not before.requires_grad
    (scorer.replay_logprobs(PROMPT, CANVAS, STEPS, gradients=True) * before).sum().backward()
    assert scorer.backbone.lm_head.weight.grad is not None
    with torch.no_grad(), pytest.raises(RequestError, match=r"gradients=True inside torch.no_grad\(\)"):
        scorer.replay_logprobs(PROMPT, CANVAS, STEPS, gradients=True)
