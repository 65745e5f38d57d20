"""Our decoder and likelihoods inside TRL's own `GRPOTrainer`: what it decodes with, scores, updates, saves and resumes.

`pytest -s tests/rl/integrations/test_trl.py` prints versions and times.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig

from dlm import SamplingParams
from dlm.decoding.noise import seed_of
from dlm.decoding.options import DecoderOptions
from dlm.demo import CHECKPOINT
from dlm.errors import ConfigError, MissingExtraError, RunError
from dlm.likelihood import SCHEMES, Coupled, Likelihood
from dlm.models.io.loading import load_checkpoint
from dlm.rl import Rollouts
from dlm.rl.integrations.trl import DiffusionGRPOTrainer, make_rollout_func
from dlm.rl.likelihoods import StepMap, token_logprobs
from dlm.rl.policy import Policy
from dlm.text import TextCodec
from tests.rl.subjects import bits, equal

KNOWN_WARNINGS = [
    # transformers renames options and methods that TRL uses.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated and will be:FutureWarning"),
    # TRL says so of every rollout function.
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func', which is an experimental feature:UserWarning"),
]
pytestmark = [pytest.mark.slow, *KNOWN_WARNINGS]

PARAMS = SamplingParams(gen_length=8, block_length=8, algorithm="basic")
"""Every forward sees the whole canvas, as a replay does."""
DATA = Dataset.from_dict({"prompt": ["Split 9 eggs into 2.", "Split 17 cups into 2."] * 4})
CODEC = TextCodec.load(CHECKPOINT)


@pytest.fixture(autouse=True)
def _nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL tells its makers that it runs."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)


def reward(completions: list[str], **columns: Any) -> list[float]:
    """The first part, where there is one."""
    seconds = [next(iter(text.split()[1:]), "") for text in completions]
    return [float(second) if second.isdigit() else 0.0 for second in seconds]


def settings(folder: Path, **changes: Any) -> GRPOConfig:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_completion_length": PARAMS.gen_length,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "loss_type": "grpo",
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return GRPOConfig(**{**values, **changes})


class Recorder(DiffusionGRPOTrainer):
    """Remembers what TRL did, and computes beside it what it should have found."""

    def __init__(self, *arguments: Any, **others: Any) -> None:
        self.generated: list[dict[str, Any]] = []
        self.scored: list[torch.Tensor] = []
        self.batches: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.gradients: list[tuple[torch.Tensor, torch.Tensor]] = []
        super().__init__(*arguments, **others)

    def _remember(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        found = super()._remember(prompts, trainer)
        self.generated.append({**found, "training": self.model.training})
        return found

    def _get_per_token_logps_and_entropies(self, model: Any, *inputs: Any, **others: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(model, *inputs, **others)
        likelihood = self.accelerator.unwrap_model(model).likelihood
        direct = self.direct(likelihood, gradients=torch.is_grad_enabled())
        for row, (logps, expected, rollout) in enumerate(zip(found[0], direct, self._rollouts, strict=True)):
            count = int(inputs[1][row, -inputs[2] :].sum())
            assert torch.equal(logps[:count], expected[:count].float())
            assert not logps[count:].any()
            assert inputs[0][row, -inputs[2] :][:count].tolist() == list(rollout.replay_token_ids[:count])
        if torch.is_grad_enabled():
            self.scored.append(found[0].detach())
        return found

    def direct(self, likelihood: Likelihood, gradients: bool) -> list[torch.Tensor]:
        names = [f"masks of sample {one.sample_index}, version {one.weight_version}" for one in self._rollouts]
        seeds = [seed_of(one.seed, name) for one, name in zip(self._rollouts, names, strict=True)]
        return token_logprobs(self.likelihood, likelihood, self._rollouts, seeds=seeds, gradients=gradients)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        if self.model.training:
            self.losses.append(float(loss.detach()))
            self.batches.append(inputs)
            if not self.gradients:
                parameters = list(self.model.parameters())
                theirs = torch.autograd.grad(loss, parameters, retain_graph=True)
                ours = torch.autograd.grad(self.own_loss(inputs), parameters)
                self.gradients = list(zip(theirs, ours, strict=True))
        return loss

    def own_loss(self, inputs: dict[str, Any]) -> torch.Tensor:
        """GRPO's objective where the ratio is 1: the mean over answers of the mean over tokens of -A log p."""
        likelihood = Likelihood(self.model.backbone, self.model.checkpoint.special)
        counts = inputs["completion_mask"].sum(1).tolist()
        each = self.direct(likelihood, gradients=True)
        means = torch.stack([logps[:count].mean() for logps, count in zip(each, counts, strict=True)])
        return -(means * inputs["advantages"]).mean()


def parts() -> tuple[Policy, Rollouts]:
    policy = Policy.from_pretrained(CHECKPOINT)
    options = DecoderOptions(arena_tokens=2000)
    return policy, Rollouts(policy.checkpoint, trainer=policy.backbone, codec=CODEC, options=options)


def trainer_of(args: GRPOConfig, kind: Callable[..., Any] = DiffusionGRPOTrainer, **others: Any) -> Any:
    policy, rollouts = parts()
    values = {"train_dataset": DATA, "processing_class": CODEC.tokenizer, "likelihood": "d1_onestep"}
    return kind(policy, reward, args=args, rollout_func=make_rollout_func(rollouts, PARAMS), **{**values, **others})


@pytest.mark.parametrize(
    ("likelihood", "beta"),
    [("step_map", 0.0), ("d1_onestep", 0.04), (Coupled(num_pairs=2), 0.0)],
    ids=["step_map", "d1_onestep", "coupled"],
)
def test_a_run_in_trls_own_trainer(likelihood: Any, beta: float, tmp_path: Path) -> None:
    """Two generations, each of two steps of the optimizer, with an evaluation after every step."""
    begun = time.monotonic()
    args = settings(
        tmp_path, max_steps=4, num_iterations=2, beta=beta, eval_strategy="steps", eval_steps=1, learning_rate=1e-3
    )
    trainer = trainer_of(args, Recorder, likelihood=likelihood, eval_dataset=DATA.select(range(2)))
    start, before = trainer.model.frozen_copy(), bits(trainer.model.backbone)
    trainer.train()
    seconds = time.monotonic() - begun

    versions = [(one["training"], set(one["weight_version"])) for one in trainer.generated]
    assert [version for training, version in versions if training] == [{0}, {2}]
    assert [version for training, version in versions if not training] == [{1}, {2}, {3}, {4}]
    assert all(len(one["prompt_ids"]) == 8 for one in trainer.generated)
    assert not equal(bits(trainer.model.backbone), before)
    assert torch.tensor(trainer.losses).isfinite().tolist() == [True] * 4

    ratios = []
    for inputs, logps in zip(trainer.batches, trainer.scored, strict=True):
        mask = inputs["completion_mask"].bool()
        ratios.append((logps - inputs["old_per_token_logps"])[mask].exp())
        if likelihood == "step_map" and len(ratios) % 2:
            recorded = inputs["sampling_per_token_logps"][mask]
            torch.testing.assert_close(logps[mask], recorded, atol=1e-5, rtol=1e-5)
    apart = [float((ratio - 1).abs().max()) for ratio in ratios]
    assert max(apart[0], apart[2]) < 1e-4, "the first step with an answer is made by the policy that gave it"
    assert min(apart[1], apart[3]) > 1e-3

    second = trainer.batches[2]
    stale = token_logprobs(StepMap(), start.likelihood, second["rollouts"], seeds=[0] * len(second["rollouts"]))
    recorded = torch.tensor([value for rollout in second["rollouts"] for value in rollout.logprobs_raw])
    assert (recorded - torch.cat(stale)).abs().max() > 1e-3, "the second generation is that of the new weights"

    norms = [float((theirs - ours).norm() / theirs.norm()) for theirs, ours in trainer.gradients if theirs.norm() > 0]
    assert len(norms) > 20
    assert max(norms) < 1e-4
    logged = [one for one in trainer.state.log_history if "loss" in one]
    if beta:
        assert abs(logged[0]["kl"]) < 1e-6 < logged[1]["kl"]
        assert equal(bits(trainer.ref_model.backbone), before)
    first = trainer.generated[0]
    entropies = [
        torch.tensor(rollout.entropies[: len(ids)])
        for rollout, ids in zip(first["rollout"], first["completion_ids"], strict=True)
    ]
    assert logged[0]["entropy"] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-4)
    print(
        f"\ntrl {version('trl')}, transformers {version('transformers')}, torch {version('torch')}: {likelihood}, "
        f"4 steps and 4 evaluations in {seconds:.1f} s; ratio at first steps within {max(apart[0], apart[2]):.1e} of "
        f"1, gradient within {max(norms):.1e} of our own"
    )


def test_rows_keep_their_rollouts_when_a_generation_is_split(tmp_path: Path) -> None:
    """TRL shuffles the rows of a generation and cuts them into micro-batches; `Recorder` compares each with its own."""
    args = settings(tmp_path, max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trainer = trainer_of(args, Recorder, likelihood="step_map")
    trainer.train()
    assert [len(batch["rollouts"]) for batch in trainer.batches] == [4, 4, 4, 4]
    found = [rollout for batch in trainer.batches[:2] for rollout in batch["rollouts"]]
    made = trainer.generated[0]["rollout"]
    assert found != made
    assert sorted(found, key=str) == sorted(made, key=str)


def test_a_checkpoint_is_the_familys_and_a_resumed_run_goes_on_the_same(tmp_path: Path) -> None:
    whole = trainer_of(settings(tmp_path, save_strategy="steps", save_steps=2))
    whole.train()
    saved = load_checkpoint(tmp_path / "checkpoint-2")
    assert not equal(bits(saved.backbone), bits(whole.model.backbone))
    assert (tmp_path / "checkpoint-2" / "tokenizer.json").exists()
    resumed = trainer_of(settings(tmp_path))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3
    assert equal(bits(resumed.model.backbone), bits(whole.model.backbone))


def test_answers_may_come_from_weights_of_their_own(tmp_path: Path) -> None:
    policy, _ = parts()
    options = DecoderOptions(arena_tokens=2000)
    rollouts = Rollouts(load_checkpoint(CHECKPOINT), codec=CODEC, options=options)
    function = make_rollout_func(rollouts, PARAMS, sleeps=True)
    messages = [[{"role": "user", "content": row["prompt"]}] for row in DATA]
    seen = []

    def judge(completions: list[list[dict[str, str]]], weight_version: list[int], **columns: Any) -> list[float]:
        seen.append(set(weight_version))
        return reward([completion[0]["content"] for completion in completions])

    trainer = DiffusionGRPOTrainer(
        policy,
        judge,
        args=settings(tmp_path, max_steps=2),
        train_dataset=Dataset.from_dict({"prompt": messages}),
        processing_class=CODEC.tokenizer,
        rollout_func=function,
    )
    trainer.train()
    shared = trainer_of(settings(tmp_path, max_steps=2))  # which also seeds the order of rows
    shared.train()
    assert seen == [{0}, {1}]
    assert equal(bits(policy.backbone), bits(shared.model.backbone)), "wherever the weights lie, and texts or messages"
    rollouts.wake()
    assert not equal(bits(rollouts.checkpoint.backbone), bits(policy.backbone)), "the last step's came after it"


@pytest.mark.parametrize(
    ("options", "others", "message"),
    [
        ({}, {"likelihood": "autoregressive"}, f"'autoregressive' is unknown; known: step_map, {', '.join(SCHEMES)}"),
        ({"sync_ref_model": True}, {}, "sync_ref_model=True is not supported here: the reference stays"),
        ({"cast_lm_head_to_fp32": True}, {}, "cast_lm_head_to_fp32=True"),
        ({"entropy_coef": 0.1}, {}, "entropy_coef=0.1 is not supported here: entropies are those recorded"),
        ({}, {"peft_config": object()}, "peft_config=<object.* adapters cannot be trained"),
        ({}, {"tools": [print]}, "tools=.* answers come from rollout_func"),
        ({"off_policy_mask_threshold": 0.5}, {}, "off_policy_mask_threshold=0.5 .* set likelihood='step_map'"),
    ],
)
def test_what_has_no_meaning_is_refused(
    options: dict[str, Any], others: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_of(settings(tmp_path, **options), **others)


def test_a_foreign_model_and_a_foreign_rollout_function_are_refused(tmp_path: Path) -> None:
    policy, rollouts = parts()
    common = {"train_dataset": DATA, "processing_class": CODEC.tokenizer}
    with pytest.raises(ConfigError, match=r"model is a Backbone; pass a dlm\.rl\.policy\.Policy"):
        DiffusionGRPOTrainer(
            policy.backbone, reward, args=settings(tmp_path), rollout_func=make_rollout_func(rollouts), **common
        )
    columns = {"prompt_ids": [[5]] * 8, "completion_ids": [[6]] * 8, "logprobs": [[0.0]] * 8}
    trainer = DiffusionGRPOTrainer(
        policy, reward, args=settings(tmp_path), rollout_func=lambda prompts, trainer: columns, **common
    )
    with pytest.raises(RunError, match=r"rollout_func returned prompt_ids, .*, logprobs; keep the column 'rollout'"):
        trainer.train()


def test_without_trl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dlm.rl.integrations.trl")
    monkeypatch.setitem(sys.modules, "trl.trainer.grpo_config", None)
    with pytest.raises(MissingExtraError, match=r"integrations\.trl needs the package 'trl': pip install 'dlm\[rl\]'"):
        import_module("dlm.rl.integrations.trl")
