"""The objective of GRPO: advantages within a group, clipped ratios, and a penalty for leaving the reference.

Works on tensors only, without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.decoding.params import check_real
from dlm.errors import RequestError

SPREAD = 1e-4
"""Added to a group's standard deviation, so that equal rewards do not divide by zero."""
AVERAGES = ("sequence", "token", "constant")
ESTIMATORS = ("k2", "k3")


@dataclass(frozen=True)
class Objective:
    """How rewards become a loss.

    Attributes:
        clip_low, clip_high: ratios of the new policy to the one that decoded are clipped to [1 - low, 1 + high] where
            that lowers the objective (PPO; the higher upper bound is from DAPO, arXiv 2503.14476).
        kl: weight of the divergence from the reference; 0 keeps no reference.
        kl_estimator: estimator of that divergence, from a token's log-probabilities p under the policy and r under the
            reference: `k2`, (r - p)^2 / 2; `k3`, exp(r - p) - (r - p) - 1 (J. Schulman, "Approximating KL divergence").
            k3 is TRL's, and unbiased for tokens drawn from p. Here the decoder draws them and a surrogate scores them;
            where the surrogate finds a token improbable, the exponential dominates k3 but not k2.
        scale_rewards: divide advantages by their group's standard deviation (GRPO, arXiv 2402.03300); otherwise they
            are differences from the mean (Dr. GRPO, arXiv 2503.20783).
        average: averaging over tokens: `sequence`, within each answer and then over answers (GRPO); `token`, over all
            tokens of the step (DAPO); `constant`, a sum divided by the maximum answer length (Dr. GRPO).

    Raises:
        RequestError: a value is out of range.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.0
    kl_estimator: str = "k2"
    scale_rewards: bool = True
    average: str = "sequence"

    def __post_init__(self) -> None:
        check_real("clip_low", self.clip_low, 0.0, 1.0, open_low=True)
        check_real("clip_high", self.clip_high, 0.0, None, open_low=True)
        check_real("kl", self.kl, 0.0, None)
        for name, known in (("average", AVERAGES), ("kl_estimator", ESTIMATORS)):
            if getattr(self, name) not in known:
                raise RequestError(f"{name}={getattr(self, name)!r} is unknown; known: {', '.join(known)}")

    def advantages(self, rewards: Tensor) -> Tensor:
        """How much better each answer is than the mean of its group.

        Args:
            rewards: `[prompts, group]` float64.

        Returns:
            `[prompts, group]` float64; all 0 for a group of equal rewards.
        """
        better = rewards - rewards.mean(dim=1, keepdim=True)
        return better / (rewards.std(dim=1, keepdim=True) + SPREAD) if self.scale_rewards else better

    def weights(self, counts: Sequence[int], longest: int, mean_tokens: float) -> Tensor:
        """The weight of a token of each answer; the loss is then a weighted sum over all tokens.

        Args:
            counts: tokens in each answer.
            longest: maximum tokens in an answer.
            mean_tokens: the sum of the counts, averaged over processes, which have equal numbers of answers and whose
                gradients are averaged.

        Returns:
            `[answers]` float64.
        """
        lengths = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
        if self.average == "sequence":
            return 1 / lengths / len(lengths)
        if self.average == "constant":
            return torch.full_like(lengths, 1 / longest / len(lengths))
        return torch.full_like(lengths, 1 / mean_tokens)

    def loss(self, new: Tensor, old: Tensor, reference: Tensor | None, advantage: Tensor, weight: Tensor) -> Losses:
        """The loss over the concatenated tokens of several answers.

        Args:
            new: `[tokens]` log-probabilities under the policy, with their graph.
            old: `[tokens]` under the policy that decoded.
            reference: `[tokens]` under the reference; None if `kl` is 0.
            advantage, weight: `[tokens]`, those of each token's answer.
        """
        ratio = (new - old).exp()
        held = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        gain = torch.minimum(ratio * advantage, held * advantage)
        clipped = (held * advantage < ratio * advantage).double().mean()
        if reference is None:
            return Losses(-(weight * gain).sum(), None, clipped)
        apart = self.divergence(new, reference)
        return Losses((weight * (self.kl * apart - gain)).sum(), apart.detach().mean(), clipped)

    def divergence(self, new: Tensor, reference: Tensor) -> Tensor:
        """`[tokens]`, each token's divergence from the reference, by `kl_estimator`."""
        behind = reference - new
        return behind.square() / 2 if self.kl_estimator == "k2" else behind.exp() - behind - 1


@dataclass(frozen=True)
class Losses:
    """The loss and its statistics.

    Attributes:
        total: scalar loss, with its graph.
        kl: mean per-token divergence from the reference; None without one.
        clipped: fraction of tokens whose ratio was clipped.
    """

    total: Tensor
    kl: Tensor | None
    clipped: Tensor
