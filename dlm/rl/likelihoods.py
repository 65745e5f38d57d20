"""Surrogates for per-token log-probabilities, which a masked diffusion model does not have: a scheme of
`dlm.likelihood`, or a replay of the states through which the answer was decoded.

The same surrogate is used for the policy, the policy that decoded and the reference, so that their ratios are
meaningful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dlm.decoding.params import check_whole
from dlm.likelihood import Likelihood, Scheme
from dlm.rl.rollout import Rollout


@dataclass(frozen=True)
class StepMap:
    """Scores each token in the state in which the decoder revealed it, replayed without a cache, as TraceRL does
    (arXiv 2509.06949); one forward for every `shrink` steps. Exact for engines that recompute everything or cache
    exactly; `Likelihood.replay_logprobs` explains what it means for the others.

    Attributes:
        shrink: number of consecutive steps replayed as one.

    Raises:
        RequestError: `shrink` is below 1.
    """

    shrink: int = 1

    def __post_init__(self) -> None:
        check_whole("shrink", self.shrink, 1)


Choice = Scheme | StepMap


def token_logprobs(
    choice: Choice, model: Likelihood, rollouts: Sequence[Rollout], *, seeds: Sequence[int], gradients: bool = False
) -> list[Tensor]:
    """Log-probabilities of the tokens of rollouts, in nats.

    Args:
        choice: `d1_onestep` is diffu-GRPO's (arXiv 2504.12216), `coupled` coupled-GRPO's (arXiv 2506.20639).
        model: the model to score with.
        rollouts: the rollouts to score.
        seeds: mask seed of each rollout; equal seeds mask equal positions. Replays draw nothing.
        gradients: keep the graph.

    Returns:
        For each rollout `[n]` float64 on the model's device, where `n` counts the tokens up to the last revealed one,
        or all of `replay_token_ids` for a replay.
    """
    if isinstance(choice, StepMap):
        replays = [rollout.replay() for rollout in rollouts]
        return model.replay_batch(replays, shrink=choice.shrink, gradients=gradients)
    prompts = [rollout.prompt_ids for rollout in rollouts]
    answers = [_revealed(rollout) for rollout in rollouts]
    scores = model.score(prompts, answers, choice, seed=seeds, per_token=True, gradients=gradients)
    return scores.per_token or []


def _revealed(rollout: Rollout) -> tuple[int, ...]:
    """The tokens after the prompt, up to the last revealed one."""
    ids = rollout.replay_token_ids
    end = len(ids)
    while end and ids[end - 1] == rollout.mask_id:
        end -= 1
    return ids[:end]
