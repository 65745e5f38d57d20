"""What stands for the log-probability of each token of an answer, which a masked diffusion model does not have: a
scheme of `dlm.likelihood`, or the states through which the answer was decoded.

A choice gives the same kind of number under the policy, under the policy that decoded and under the reference, so that
their ratios mean something.
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
    """Each token at the state in which the decoder revealed it, replayed without a cache, as TraceRL does
    (arXiv 2509.06949); one forward for every `shrink` steps. Exact for the engines that recompute everything or cache
    exactly; what it means for others is said at `Likelihood.replay_logprobs`.

    Attributes:
        shrink: so many consecutive steps are replayed as one.

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
        model: under which.
        rollouts: whose tokens.
        seeds: of the masks that a scheme draws for each rollout; equal seeds hide equal places. Replays draw nothing.
        gradients: keep the graph.

    Returns:
        For each rollout `[n]` float64 on the model's device: of the `n` tokens up to the last that was revealed, or of
        all of `replay_token_ids`.
    """
    if isinstance(choice, StepMap):
        replays = [rollout.replay() for rollout in rollouts]
        return model.replay_batch(replays, shrink=choice.shrink, gradients=gradients)
    prompts = [rollout.prompt_ids for rollout in rollouts]
    answers = [_revealed(rollout) for rollout in rollouts]
    scores = model.score(prompts, answers, choice, seed=seeds, per_token=True, gradients=gradients)
    return scores.per_token or []


def _revealed(rollout: Rollout) -> tuple[int, ...]:
    """The tokens behind the prompt up to the last one that was revealed."""
    ids = rollout.replay_token_ids
    end = len(ids)
    while end and ids[end - 1] == rollout.mask_id:
        end -= 1
    return ids[:end]
