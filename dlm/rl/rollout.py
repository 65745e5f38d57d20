"""One sampled answer as policy gradients need it: tokens, the step that revealed each, and their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dlm.decoding.request import Completion, Request
from dlm.errors import RunError
from dlm.likelihood import Replay
from dlm.text import TextCodec, first_stop

CONTRACT_VERSION = 1


@dataclass(frozen=True)
class Rollout:
    """One sampled answer.

    The log-probabilities are those of the forwards that revealed the tokens. They are **not** an autoregressive
    likelihood, and their sum is not the log-probability of the answer: `Rollouts.score` estimates that.

    `token_ids` is a prefix of `replay_token_ids`. Fields with one entry per `replay_token_ids` also cover the end token
    and everything after it; their first `len(token_ids)` entries belong to the answer.

    Attributes:
        prompt_index, sample_index: index of the prompt in the call, and of the sample among its `n`.
        seed: noise seed; the noise depends on (seed, sample_index, forward, position).
        prompt_ids: the prompt, with any masks in it filled in.
        token_ids: the answer without its terminator: cut before the first end token, at `max_tokens`, and after the
            last token that contributes text before a stop string.
        step_map: for each of `token_ids`, the 1-based forward that made it final.
        replay_token_ids: the whole canvas after the prompt, including the rest of the last block past the end token;
            the mask id where nothing was revealed.
        replay_step_map: `step_map` for each of `replay_token_ids`; 0 where nothing was revealed.
        logprobs_raw: for each of `replay_token_ids`, log softmax(logits) after guidance and before temperature and
            filters; 0 where nothing was revealed.
        logprobs_processed: the same under the distribution that the token was drawn from, after temperature, top-p and
            top-k; 0 also at temperature 0, where nothing is drawn. Empty if not requested.
        entropies: entropy of softmax(logits) for each of `replay_token_ids`, in nats. Empty if not requested.
        nfe: forwards that this sample took part in.
        finish_reason: `stop` or `length`.
        block_length: block length it was decoded with.
        mask_id: token id of an undecided position.
        weight_version: version of the weights that decoded it.
        contract_version: version of this set of fields.
    """

    prompt_index: int
    sample_index: int
    seed: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    step_map: tuple[int, ...]
    replay_token_ids: tuple[int, ...]
    replay_step_map: tuple[int, ...]
    logprobs_raw: tuple[float, ...]
    logprobs_processed: tuple[float, ...]
    entropies: tuple[float, ...]
    nfe: int
    finish_reason: str
    block_length: int
    mask_id: int
    weight_version: int
    contract_version: int = CONTRACT_VERSION

    def replay(self, *, align_blocks: bool = False) -> Replay:
        """The canvas for `Likelihood.replay_batch`; `align_blocks` must match the decoding."""
        return Replay(self.prompt_ids, self.replay_token_ids, self.replay_step_map, self.block_length, align_blocks)


def rollout_of(
    completion: Completion,
    request: Request,
    *,
    stop: Sequence[str],
    codec: TextCodec | None,
    mask_id: int,
    weight_version: int,
) -> Rollout:
    """The rollout of a finished sample.

    Args:
        completion: recorded completion; its request id is the prompt's index.
        request: the request.
        stop: stop strings; `codec` cuts at them.
        codec: None without stop strings.
        mask_id, weight_version: as in `Rollout`.

    Raises:
        RunError: the sample could not be decoded; includes the reason.
    """
    if completion.error is not None or completion.step_map is None:
        raise RunError(f"prompts[{completion.request_id}] could not be decoded: {completion.error}")
    token_ids, finish_reason = list(completion.token_ids), completion.finish_reason
    if stop and codec is not None:
        _, token_ids, stopped = codec.show(token_ids, stop)
        finish_reason = "stop" if stopped else finish_reason
    return Rollout(
        prompt_index=int(completion.request_id),
        sample_index=completion.sample,
        seed=completion.seed,
        prompt_ids=completion.prompt_ids,
        token_ids=tuple(token_ids),
        step_map=completion.step_map[: len(token_ids)],
        replay_token_ids=completion.canvas_ids,
        replay_step_map=completion.step_map,
        logprobs_raw=_finite(completion.logprobs),
        logprobs_processed=_finite(completion.logprobs_processed),
        entropies=_finite(completion.entropies),
        nfe=completion.nfe,
        finish_reason=finish_reason,
        block_length=request.engine.fixed_block or request.params.block_length,
        mask_id=mask_id,
        weight_version=weight_version,
    )


def ended_length(rollout: Rollout, stop: Sequence[str], codec: TextCodec | None, end_ids: Sequence[int]) -> int:
    """Number of `replay_token_ids` that form the answer and its terminator: the end token, or all tokens through the
    stop string. Training on them is what teaches a model to end its answers.

    Args:
        rollout: an answer.
        stop: its stop strings; `codec` finds them.
        codec: None without stop strings.
        end_ids: tokens that end an answer.
    """
    count, canvas = len(rollout.token_ids), rollout.replay_token_ids
    if rollout.finish_reason != "stop":
        return count
    over = (*end_ids, rollout.mask_id)
    while stop and codec is not None:
        if first_stop(codec.decode(canvas[:count]), stop) is not None:
            return count
        if count == len(canvas) or canvas[count] in over:
            break
        count += 1
    return count + (count < len(canvas) and canvas[count] in end_ids)


def _finite(values: Sequence[float] | None) -> tuple[float, ...]:
    return tuple(0.0 if math.isnan(value) else value for value in values or ())
