"""The rollout function for TRL's `GRPOTrainer` (1.0 or later): `rollout_func(prompts, trainer)`. Needs no TRL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from math import gcd
from typing import Any

from dlm.decoding.noise import seed_of
from dlm.errors import ConfigError, RequestError, RunError
from dlm.inputs import Prompt
from dlm.rl.rollout import Rollout, ended_length
from dlm.rl.rollouts import Rollouts
from dlm.sampling_params import SamplingParams

RolloutFunc = Callable[[list[Any], Any], dict[str, list[Any]]]

FIELDS = (
    "replay_token_ids", "replay_step_map", "logprobs_processed", "entropies", "nfe", "finish_reason", "block_length",
    "mask_id", "seed", "weight_version",
)  # fmt: skip
"""Fields of `Rollout` returned under the same names."""

UNUSED = {"min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None, "chat_template_kwargs": None}
"""Options of `GRPOConfig` that only apply to transformers or vLLM generation, and their neutral values."""


def make_rollout_func(rollouts: Rollouts, params: SamplingParams | None = None, *, sleeps: bool = False) -> RolloutFunc:
    """Make the function for `GRPOTrainer(rollout_func=...)`: given a process's prompts and the trainer, it decodes one
    answer per prompt.

    Before decoding it takes the trainer's weights if there was an optimizer step since the last call: with
    `rollouts.sync` if `rollouts` has a trainer module, else with `rollouts.update_weights` and the parameters of the
    trainer's model. Their version is the number of optimizer steps.

    Prompts are texts or lists of chat messages. Both go through `rollouts.codec`: texts are formatted with the chat
    template too, if there is one. Equal prompts get different noise, and so does every call. The noise is a function of
    the seed, the process, training or evaluation, the optimizer step, the call within it and the index in the batch.

    The function returns lists with one entry per prompt: `prompt_ids`; `completion_ids` including the end token or stop
    string that ended the answer, so never empty; `logprobs`, their `Rollout.logprobs_raw`, which are not an
    autoregressive likelihood. Reward functions also get their `step_map`, the fields in `FIELDS`, and the `Rollout`
    itself as `rollout`.

    Args:
        rollouts: decodes; must have a tokenizer.
        params: parameters of every prompt. Temperature, top_p, top_k and the length must match the trainer's
            `GRPOConfig`. None: those, and the family's defaults for the rest. Without a seed the trainer's is used.
        sleeps: after each call, free all memory not shared with the trainer (`Rollouts.sleep`).

    Raises:
        ConfigError: no tokenizer, or parameters that no trainer can use. The function raises it too if the trainer's
            `GRPOConfig` contradicts `params`.
        RequestError: (from the function) prompts cannot be decoded.
        RunError: (from the function) the trainer trains a different model than `rollouts.trainer`.
    """
    if rollouts.codec is None:
        raise ConfigError("the rollouts have no tokenizer; create them with codec=")
    if params is not None and params.n != 1:
        raise ConfigError(f"n={params.n} in the parameters; write GRPOConfig(num_generations={params.n})")
    if params is not None and params.align_blocks:
        raise ConfigError("align_blocks=True in the parameters: replays would ignore it; leave it out")
    if params is not None and params.cfg_scale > 0:
        raise ConfigError(f"cfg_scale={params.cfg_scale}: guided answers are not the policy's own; leave it out")
    return _Answers(rollouts, params, sleeps)


class _Answers:
    """See `make_rollout_func`."""

    def __init__(self, rollouts: Rollouts, params: SamplingParams | None, sleeps: bool) -> None:
        self.rollouts, self.params, self.sleeps = rollouts, params, sleeps
        self._taken: int | None = None
        self._calls: dict[str, tuple[int, int]] = {}

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        params = _agreed(self.params, trainer.args)
        share = gcd(*(len(list(run)) for _, run in groupby(prompts))) or 1
        groups = [self._prompt(index, prompts[index]) for index in range(0, len(prompts), share)]
        occasion = self._occasion(trainer)
        each = [replace(params, seed=seed_of(params.seed, f"{occasion}, {index}")) for index in range(len(groups))]
        if self.sleeps:
            self.rollouts.wake()
        self._take_weights(trainer)
        found = self.rollouts.generate(groups, each, n=share)
        if self.sleeps:
            self.rollouts.sleep()
        return self._columns(found, params.stop)

    def _prompt(self, index: int, prompt: Any) -> Prompt:
        """Texts unchanged, messages as token ids."""
        if isinstance(prompt, str):
            return prompt
        if not all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in prompt):
            raise RequestError(f"prompts[{index}] must be a text or messages with text contents: {prompt!r:.80}")
        assert self.rollouts.codec is not None  # checked in make_rollout_func
        return self.rollouts.codec.encode(list(prompt))

    def _occasion(self, trainer: Any) -> str:
        """A name unique to this call, and the same in a resumed run."""
        mode, step = "train" if trainer.model.training else "eval", trainer.state.global_step
        last, calls = self._calls.get(mode, (step, 0))
        calls = calls + 1 if last == step else 1
        self._calls[mode] = (step, calls)
        return f"process {trainer.accelerator.process_index}, {mode}, step {step}, call {calls}"

    def _take_weights(self, trainer: Any) -> None:
        step, rollouts = trainer.state.global_step, self.rollouts
        if self._taken == step:
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        if rollouts.trainer is None:
            rollouts.update_weights(model.named_parameters(), version=step)
        elif any(part is rollouts.trainer for part in model.modules()):
            rollouts.sync(version=step)
        else:
            raise RunError("the trainer trains another module than Rollouts(trainer=...); pass the same one to both")
        self._taken = step

    def _columns(self, found: Sequence[Rollout], stop: Sequence[str]) -> dict[str, list[Any]]:
        codec, end_ids = self.rollouts.codec, self.rollouts.checkpoint.special.end_ids
        counts = [ended_length(rollout, stop, codec, end_ids) for rollout in found]
        pairs = list(zip(found, counts, strict=True))
        return {
            "prompt_ids": [list(rollout.prompt_ids) for rollout in found],
            "completion_ids": [list(rollout.replay_token_ids[:count]) for rollout, count in pairs],
            "logprobs": [list(rollout.logprobs_raw[:count]) for rollout, count in pairs],
            "step_map": [list(rollout.replay_step_map[:count]) for rollout, count in pairs],
            **{name: [getattr(rollout, name) for rollout in found] for name in FIELDS},
            "rollout": list(found),
        }


def _agreed(params: SamplingParams | None, args: Any) -> SamplingParams:
    """Decoding parameters that match the trainer's `args`, with a seed. Raises `ConfigError` listing every fault."""
    told = {"temperature": args.temperature, "top_p": args.top_p, "top_k": max(0, args.top_k or 0)}
    length = args.max_completion_length
    if params is None:
        params = SamplingParams(gen_length=length, **told)
    shown = params.gen_length if params.max_tokens is None else params.max_tokens
    faults = [
        f"{name}={getattr(params, name)} in the parameters and {value} in GRPOConfig"
        for name, value in told.items()
        if getattr(params, name) != value
    ]
    if shown != length:
        faults.append(f"answers of {shown} tokens in the parameters and max_completion_length={length} in GRPOConfig")
    if params.stop and args.mask_truncated_completions:
        faults.append("mask_truncated_completions=True would treat answers ended by a stop string as truncated")
    faults += [
        f"{name}={getattr(args, name)} in GRPOConfig has no effect here; leave it out"
        for name, nothing in UNUSED.items()
        if getattr(args, name, nothing) not in (nothing, None, {})
    ]
    if faults:
        raise ConfigError("; ".join(faults))
    return params if params.seed is not None else replace(params, seed=args.seed)
