"""TRL's `GRPOTrainer` with a diffusion model: answers from our decoder, and log-probabilities suited to it.

    policy = Policy.from_pretrained(folder)
    rollouts = Rollouts(policy.checkpoint, trainer=policy.backbone, codec=TextCodec.load(folder))
    trainer = DiffusionGRPOTrainer(
        policy,
        reward,
        args=GRPOConfig(max_completion_length=128),
        train_dataset=dataset,
        processing_class=rollouts.codec.tokenizer,
        rollout_func=make_rollout_func(rollouts),
        likelihood="coupled",
    )
    trainer.train()

Needs TRL: `pip install 'dlm[rl]'`. docs/rl.md lists the options that are rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.decoding.noise import seed_of
from dlm.errors import ConfigError, MissingExtraError, RunError
from dlm.likelihood import SCHEMES, Likelihood
from dlm.rl.integrations.rollout_func import RolloutFunc, make_rollout_func
from dlm.rl.likelihoods import Choice, StepMap, token_logprobs
from dlm.rl.policy import Policy
from dlm.rl.rollout import Rollout

try:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
except ImportError as error:
    raise MissingExtraError("trl", "rl", "dlm.rl.integrations.trl") from error

__all__ = ["DiffusionGRPOTrainer", "make_rollout_func"]

STEP_MAP = "step_map"

DECODED = "answers come from rollout_func"
RECORDED = "entropies are those recorded by the decoder, without gradients"
WHOLE = "each process holds the whole model"
REFUSED = {
    "use_vllm": DECODED,
    "use_transformers_continuous_batching": DECODED,
    "tools": DECODED,
    "environment_factory": DECODED,
    "cast_lm_head_to_fp32": "log-probabilities are already computed in float32",
    "use_liger_kernel": "the model is not one of transformers' own",
    "peft_config": "adapters cannot be trained here; merge one with dlm.convert",
    "quantization_config": "the model is already loaded",
    "sync_ref_model": "the reference stays the initial model",
    "entropy_coef": RECORDED,
    "use_adaptive_entropy": RECORDED,
    "load_best_model_at_end": "load the one you want with Policy.read_weights",
    "fsdp": WHOLE,
    "deepspeed": WHOLE,
}
"""Options of `GRPOConfig` and `GRPOTrainer` that are rejected, and why."""


class DiffusionGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` with the surrogate log-probabilities of a masked diffusion model.

    TRL scores an answer from left to right, each token given those before it. Here the hook that does so
    (`_get_per_token_logps_and_entropies`) uses `likelihood` instead, through the model's forward, with gradients where
    the loss needs them. An answer gets the same masks in all of its scores, so that ratios and divergences compare like
    with like. The logged entropy is that of the recorded distributions.

    Args:
        model: the policy.
        reward_funcs: as in TRL; they also get the extra columns of `make_rollout_func`.
        args: TRL's configuration; `beta` above 0 keeps a copy of the model as the reference.
        rollout_func: from `make_rollout_func`, or a wrapper that keeps its columns.
        likelihood: `d1_onestep`, `coupled` or another name in `dlm.likelihood.SCHEMES`; `step_map` to replay the
            decoder's own steps; or a scheme or `dlm.rl.likelihoods.StepMap` object.
        others: `train_dataset`, `processing_class` and the other arguments of `GRPOTrainer`.

    Raises:
        ConfigError: an unknown likelihood, a model that is not a `Policy`, or an option in `REFUSED`.
    """

    def __init__(
        self,
        model: Policy,
        reward_funcs: Any,
        *,
        args: GRPOConfig,
        rollout_func: RolloutFunc,
        likelihood: Choice | str = "d1_onestep",
        **others: Any,
    ) -> None:
        self.likelihood = _choice(likelihood)
        self._decode, self._rollouts = rollout_func, list[Rollout]()
        _check(model, args, others, self.likelihood)
        beta, args.beta = args.beta, 0.0  # else TRL loads the reference by name with transformers
        try:
            super().__init__(model, reward_funcs, args, rollout_func=self._remember, **others)
        finally:
            args.beta = beta
        self.beta = beta
        if beta:
            self.ref_model = self.accelerator.prepare_model(model.frozen_copy(), evaluation_mode=True)

    # The rollouts of a batch

    def _remember(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        found = self._decode(prompts, trainer)
        if "rollout" not in found:
            raise RunError(f"rollout_func returned {', '.join(found)}; keep the column 'rollout' of make_rollout_func")
        self._rollouts = found["rollout"]
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return {**batch, "rollouts": self._rollouts}  # TRL shuffles and splits them with the rest

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._rollouts = inputs["rollouts"]
        loss: Tensor = super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]  # untyped in TRL
        return loss

    # Their log-probabilities

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **of_images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Score the completions in the last `logits_to_keep` columns of `input_ids` `[B, S]`.

        `batch_size` bounds TRL's memory; here `Policy(score_tokens=...)` does.

        Returns:
            Log-probabilities and entropies, `[B, logits_to_keep]` float32, 0 on padding; and no auxiliary loss.
        """
        rollouts, gradients = self._rollouts, torch.is_grad_enabled()
        if len(rollouts) != len(input_ids):
            raise RunError(f"{len(input_ids)} rows to score, but {len(rollouts)} rollouts")
        seeds = [
            seed_of(rollout.seed, f"masks of sample {rollout.sample_index}, version {rollout.weight_version}") or 0
            for rollout in rollouts
        ]

        def ask(likelihood: Likelihood) -> list[Tensor]:
            return token_logprobs(self.likelihood, likelihood, rollouts, seeds=seeds, gradients=gradients)

        with self.accelerator.autocast():
            each = model(ask)
        counts = attention_mask[:, -logits_to_keep:].sum(1).tolist()
        recorded = [torch.tensor(rollout.entropies, device=input_ids.device) for rollout in rollouts]
        entropies = _padded(recorded, counts, logits_to_keep) if compute_entropy else None
        return _padded(each, counts, logits_to_keep), entropies, None

    # Checkpoints

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load our own format: TRL would find none of its parameter names and silently keep the current weights."""
        self.accelerator.unwrap_model(self.model if model is None else model).read_weights(resume_from_checkpoint)


def _choice(likelihood: Choice | str) -> Choice:
    if not isinstance(likelihood, str):
        return likelihood
    if likelihood == STEP_MAP:
        return StepMap()
    if likelihood not in SCHEMES:
        raise ConfigError(f"likelihood={likelihood!r} is unknown; known: {', '.join([STEP_MAP, *SCHEMES])}")
    return SCHEMES[likelihood]()


def _check(model: Any, args: GRPOConfig, others: dict[str, Any], likelihood: Choice) -> None:
    """Raise `ConfigError` listing every fault."""
    faults = [
        f"{name}={value!r:.40} is not supported here: {reason}"
        for name, reason in REFUSED.items()
        if (value := others.get(name, getattr(args, name, None)))
    ]
    if not isinstance(model, Policy):
        faults.append(f"model is a {type(model).__name__}; pass a dlm.rl.policy.Policy")
    if args.off_policy_mask_threshold is not None and not isinstance(likelihood, StepMap):
        faults.append(
            f"off_policy_mask_threshold={args.off_policy_mask_threshold} compares with what the decoder recorded; set "
            f"likelihood='{STEP_MAP}'"
        )
    if faults:
        raise ConfigError("; ".join(faults))


def _padded(rows: Sequence[Tensor], counts: Sequence[int], width: int) -> Tensor:
    """`[rows, width]` float32: the first `count` of each row, then 0."""
    pairs = zip(rows, counts, strict=True)
    return torch.stack([F.pad(row[:count].float(), (0, width - count)) for row, count in pairs])
