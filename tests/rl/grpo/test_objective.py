"""The objective against its formulas, written out by hand."""

from __future__ import annotations

import pytest
import torch

from dlm.errors import RequestError
from dlm.rl.grpo.objective import SPREAD, Objective

REWARDS = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.25, 0.25]], dtype=torch.float64)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_advantages_are_differences_from_the_group_in_its_standard_deviations():
    found = Objective().advantages(REWARDS)
    assert found[0].tolist() == pytest.approx([-0.5 / (0.5 + SPREAD), 0.5 / (0.5 + SPREAD), 0.0])
    assert found[1].tolist() == [0.0, 0.0, 0.0]
    assert Objective(scale_rewards=False).advantages(REWARDS)[0].tolist() == [-0.5, 0.5, 0.0]


def test_what_a_token_weighs():
    counts = [1, 4, 0]
    assert Objective().weights(counts, 8, 5).tolist() == pytest.approx([1 / 3, 1 / 12, 1 / 3])
    assert Objective(average="token").weights(counts, 8, 5).tolist() == pytest.approx([1 / 5] * 3)
    assert Objective(average="constant").weights(counts, 8, 5).tolist() == pytest.approx([1 / 24] * 3)


def test_two_processes_weigh_tokens_as_one_does():
    """Their gradients are averaged: each weighs by the tokens that a process has on average."""
    one = Objective(average="token").weights([2, 6], 8, 8)
    for counts in ([2], [6]):
        assert Objective(average="token").weights(counts, 8, 4) / 2 == pytest.approx(one[:1])


def test_at_the_policy_that_decoded_the_gradient_is_that_of_reinforce():
    new = double(-1.0, -2.0, -0.5).requires_grad_()
    advantage, weight = double(1.0, -2.0, 0.5), double(0.25, 0.25, 0.5)
    losses = Objective().loss(new, new.detach(), None, advantage, weight)
    losses.total.backward()
    assert new.grad.tolist() == pytest.approx((-advantage * weight).tolist())
    assert losses.kl is None, "nothing was measured"
    assert float(losses.clipped) == 0.0


def test_a_ratio_beyond_its_bound_has_no_gradient_where_it_would_gain():
    """Of the four corners (ratio high or low, advantage good or bad) two are held."""
    ratio = double(1.5, 1.5, 0.5, 0.5)
    new = ratio.log().requires_grad_()
    advantage = double(1.0, -1.0, 1.0, -1.0)
    losses = Objective(clip_low=0.2, clip_high=0.3).loss(new, torch.zeros_like(new), None, advantage, torch.ones(4))
    losses.total.backward()
    assert (new.grad != 0).tolist() == [False, True, True, False]
    assert float(losses.total.detach()) == pytest.approx(-(1.3 - 1.5 + 0.5 - 0.8))
    assert float(losses.clipped) == 0.5, "a share of the tokens, whatever they weigh"


POLICY, REFERENCE = double(0.7, 0.2, 0.1).log(), double(0.3, 0.3, 0.4).log()


def test_the_divergence_by_k3_is_unbiased_and_never_negative():
    terms = Objective(kl_estimator="k3").divergence(POLICY, REFERENCE)
    assert (terms >= 0).all()
    exact = (POLICY.exp() * (POLICY - REFERENCE)).sum()
    assert float((POLICY.exp() * terms).sum()) == pytest.approx(float(exact))


def test_the_slope_of_k2_is_that_of_the_divergence():
    """Over tokens drawn from the policy, by its logits."""
    logits = double(0.5, -0.2, 0.1).requires_grad_()
    policy = logits.log_softmax(0)
    exact = torch.autograd.grad((policy.exp() * (policy - REFERENCE)).sum(), logits, retain_graph=True)[0]
    terms = Objective(kl_estimator="k2").divergence(policy, REFERENCE)
    found = torch.autograd.grad((policy.detach().exp() * terms).sum(), logits)[0]
    assert found.tolist() == pytest.approx(exact.tolist())


def test_k2_stays_small_where_k3_takes_over():
    new, reference = double(-30.0), double(-1.0)
    assert float(Objective(kl_estimator="k3").divergence(new, reference)) > 1e12
    assert float(Objective(kl_estimator="k2").divergence(new, reference)) == pytest.approx(29**2 / 2)


def test_the_penalty_pulls_back_to_the_reference():
    new = double(-1.0).requires_grad_()
    losses = Objective(kl=0.1).loss(new, new.detach(), double(-2.0), double(0.0), double(1.0))
    losses.total.backward()
    assert float(losses.kl) == pytest.approx(0.5)
    assert float(new.grad) > 0  # descent lowers the log-probability


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"clip_low": 0.0}, "clip_low"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": -1.0}, "clip_high"),
        ({"kl": -0.1}, "kl"),
        ({"kl_estimator": "k1"}, "kl_estimator='k1' is unknown; known: k2, k3"),
        ({"average": "answer"}, "average='answer' is unknown; known: sequence, token, constant"),
    ],
)
def test_values_out_of_range_are_named(values, said):
    with pytest.raises(RequestError, match=said):
        Objective(**values)
