"""One step of GRPO as a LightningModule: roll out, reward, score, update. Prompts are token ids; only rewards see
texts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from dlm.decoding.noise import seed_of
from dlm.decoding.options import DecoderOptions
from dlm.errors import RequestError, RunError
from dlm.likelihood import Likelihood
from dlm.models.io.loading import Checkpoint
from dlm.models.lora.training import LoraOptions
from dlm.rl.grpo.objective import Objective
from dlm.rl.grpo.optimizer import PolicyOptimizerOptions
from dlm.rl.grpo.policy_module import PolicyModule
from dlm.rl.grpo.prompts import Step, TrainingPrompt, refuse
from dlm.rl.grpo.rewards import RewardRunner, RewardVerdict
from dlm.rl.likelihoods import Choice, token_logprobs
from dlm.rl.rollout import Rollout, ended_length
from dlm.rl.rollouts import Rollouts
from dlm.sampling_params import SamplingParams
from dlm.text import TextCodec

PARTS = ("rollout", "reward", "score", "update")
"""Timed parts of a step: decoding; rewarding; log-probabilities under older policies and the reference; gradients and
optimizer steps."""


@dataclass(frozen=True)
class Options:
    """How a policy is trained.

    Attributes:
        generation: sampling parameters of the answers; seed must be None.
        group_size: answers per prompt.
        updates: optimizer steps per step's answers.
        objective: turns rewards into a loss.
        likelihood: surrogate for a token's log-probability.
        optimizer: learning rate and related settings.
        lora: the adapter to train; rank 0 trains the weights.
        decoder: decoder limits.
        score_tokens: rows in one scoring forward.
        seed: seed of all randomness.
    """

    generation: SamplingParams
    group_size: int
    updates: int
    objective: Objective
    likelihood: Choice
    optimizer: PolicyOptimizerOptions
    lora: LoraOptions
    decoder: DecoderOptions
    score_tokens: int
    seed: int


@dataclass(frozen=True)
class SampledAnswer:
    """A rollout with its text and its reward."""

    question: TrainingPrompt
    rollout: Rollout
    text: str
    verdict: RewardVerdict


class GRPO(LightningModule):
    """A policy in training.

    Args:
        options: training options.
        load: loads the checkpoint to train onto a device; called again for the reference if there is one.
        load_decoder: loads a separate copy for decoding; None decodes with the trained weights themselves.
        codec: turns answers into text for the reward.
        judge: runs the reward.
    """

    def __init__(
        self,
        options: Options,
        load: Callable[[torch.device], Checkpoint],
        load_decoder: Callable[[torch.device], Checkpoint] | None,
        codec: TextCodec,
        judge: RewardRunner,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.options, self.codec, self.judge = options, codec, judge
        self._load, self._load_decoder = load, load_decoder
        self.steps_done = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.measured: dict[str, float] = {}

    def configure_model(self) -> None:
        """Load the weights onto this process's device; Lightning may call it twice."""
        if hasattr(self, "learner"):
            return
        options = self.options
        self.learner = PolicyModule(
            self._load,
            self._load_decoder,
            self.device,
            lora=options.lora,
            seed=options.seed,
            codec=self.codec,
            options=options.decoder,
            score_tokens=options.score_tokens,
            compared=options.objective.kl > 0,
        )

    @property
    def rollouts(self) -> Rollouts:
        """The object that decodes and scores."""
        return self.learner.rollouts

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        optimizer, schedule = self.options.optimizer.build(self.learner.trained.parameters())
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def state(self) -> dict[str, Any]:
        """The state that `restore` needs to resume."""
        optimizer, schedule = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        return {
            "step": self.steps_done,
            "weights": self.learner.trained.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from the step at which `state` was taken."""
        self.learner.trained.load_state_dict(state["weights"])
        self.trainer.optimizers[0].load_state_dict(state["optimizer"])
        self.trainer.lr_scheduler_configs[0].scheduler.load_state_dict(state["schedule"])
        self.steps_done = state["step"]
        self.rollouts.sync(version=self.steps_done)

    def check(self, questions: Sequence[TrainingPrompt]) -> None:
        """Raise `DataError` naming a question that cannot be rolled out, or `RequestError` if none can."""
        faults: dict[str, str] = {}
        for question in questions:
            try:
                self.rollouts.check([question.token_ids], self.options.generation)
            except RequestError as error:
                faults[question.id] = str(error).removeprefix("prompts[0]: ")
        if faults and len(faults) == len(questions):
            raise RequestError(f"no prompt can be decoded: {next(iter(faults.values()))}")
        refuse(list(faults.items()))

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:
        """No-op: a step holds plain values, which stay on the host."""
        return batch

    def training_step(self, step: Step, batch_idx: int) -> None:
        """Roll out a step's questions and update the weights; stores the step's metrics in `measured`."""
        self.seconds.clear()
        answers = self.answers(step.questions, self.options.group_size, f"step {step.number}")
        rewards = torch.tensor([answer.verdict.reward for answer in answers], dtype=torch.float64)
        groups = rewards.view(len(step.questions), self.options.group_size)
        found = self._update(step.number, answers, groups)
        self.steps_done = step.number
        with self._timed("update"):
            self.rollouts.sync(version=step.number)
        self.measured = self._over_processes({**self._figures(answers, groups), **found})
        self.measured["not_judged"] *= self.trainer.world_size

    def answers(self, questions: Sequence[TrainingPrompt], samples: int, name: str) -> list[SampledAnswer]:
        """Decode and reward `samples` answers to each question, grouped by question.

        Args:
            questions: the questions.
            samples: answers per question.
            name: name of the call; seeds the noise together with the question's id.
        """
        with self._timed("rollout"):
            seeds = [seed_of(self.options.seed, f"{name}, {one.id}, turn {one.turn}") for one in questions]
            params = [replace(self.options.generation, seed=seed) for seed in seeds]
            prompts = [question.token_ids for question in questions]
            rollouts = self.rollouts.generate(prompts, params, n=samples, distributions=False)
        with self._timed("reward"):
            asked = [questions[rollout.prompt_index] for rollout in rollouts]
            texts = [self._text(rollout) for rollout in rollouts]
            verdicts = self.judge([question.row for question in asked], texts)
        return [SampledAnswer(*parts) for parts in zip(asked, rollouts, texts, verdicts, strict=True)]

    def _text(self, rollout: Rollout) -> str:
        """The visible text of an answer, cut before a stop string."""
        text, _, _ = self.codec.show(rollout.replay_token_ids[: self._counted(rollout)], self.options.generation.stop)
        return text

    def _update(self, number: int, answers: Sequence[SampledAnswer], rewards: Tensor) -> dict[str, float]:
        """Run the step's updates; returns their mean metrics."""
        options, rollouts = self.options, [answer.rollout for answer in answers]
        counts = [self._counted(rollout) for rollout in rollouts]
        seeds = [self._mask_seeds(number, update, answers) for update in range(options.updates)]
        with self._timed("update"):
            weights, advantages = self._by_token(counts, rewards)
        with self._timed("score"), torch.no_grad():
            policy = self.rollouts.likelihood
            # In the first update the policy is still the one that decoded, so its ratios are 1 by construction.
            before = [None, *(self._tokens(policy, rollouts, counts, masks) for masks in seeds[1:])]
            with self.learner.at_the_start() as first:
                other = [None if first is None else self._tokens(first, rollouts, counts, masks) for masks in seeds]
        totals: defaultdict[str, float] = defaultdict(float)
        with self._timed("update"):
            for masks, old, apart in zip(seeds, before, other, strict=True):
                new = self._tokens(policy, rollouts, counts, masks, gradients=True)
                loss = options.objective.loss(new, new.detach() if old is None else old, apart, advantages, weights)
                totals["gradient_norm"] += self._descend(loss.total, number)
                totals["loss"] += float(loss.total.detach())
                totals["clipped"] += float(loss.clipped)
                if loss.kl is not None:
                    totals["kl"] += float(loss.kl)
        return {name: total / options.updates for name, total in totals.items()}

    def _by_token(self, counts: Sequence[int], rewards: Tensor) -> tuple[Tensor, Tensor]:
        """`[tokens]`, `[tokens]`: each token's weight, and the advantage of its answer."""
        objective, generation, tokens = self.options.objective, self.options.generation, torch.tensor(counts)
        mean_tokens = self._over_processes({"tokens": float(sum(counts))})["tokens"]
        longest = min(generation.gen_length, generation.max_tokens or generation.gen_length)
        weights = objective.weights(counts, longest, mean_tokens).repeat_interleave(tokens)
        advantages = objective.advantages(rewards).flatten().repeat_interleave(tokens)
        return weights.to(self.device), advantages.to(self.device)

    def _mask_seeds(self, number: int, update: int, answers: Sequence[SampledAnswer]) -> list[int]:
        """A mask seed for each answer, shared by the policy, the policy that decoded, and the reference."""
        names = [
            f"masks of step {number}, update {update}, {answer.question.id}, turn {answer.question.turn}, "
            f"{answer.rollout.sample_index}"
            for answer in answers
        ]
        return [seed_of(self.options.seed, name) or 0 for name in names]

    def _tokens(
        self,
        model: Likelihood,
        rollouts: Sequence[Rollout],
        counts: Sequence[int],
        seeds: Sequence[int],
        gradients: bool = False,
    ) -> Tensor:
        """`[tokens]` log-probabilities of the counted tokens, answers concatenated."""
        each = token_logprobs(self.options.likelihood, model, rollouts, seeds=seeds, gradients=gradients)
        return torch.cat([logprobs[:count] for logprobs, count in zip(each, counts, strict=True)])

    def _counted(self, rollout: Rollout) -> int:
        """Number of tokens that receive a gradient: the answer and its terminator."""
        return ended_length(rollout, self.options.generation.stop, self.codec, self.learner.checkpoint.special.end_ids)

    def _descend(self, loss: Tensor, number: int) -> float:
        """Take one optimizer step; returns the gradient norm before clipping. Raises `RunError` if it is not finite,
        before the weights are touched."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        self.manual_backward(loss)
        norm = clip_grad_norm_(self.learner.trained.parameters(), self.options.optimizer.clip_norm)
        if not torch.isfinite(norm):
            raise RunError(
                f"the gradient norm of step {number} is {float(norm)}; lower optimizer.lr, or check the reward"
            )
        optimizer.step()  # type: ignore[union-attr]  # a single optimizer, not a list
        optimizer.zero_grad()  # type: ignore[union-attr]  # as above
        schedule.step()  # type: ignore[union-attr]  # a single schedule
        return float(norm)

    def _figures(self, answers: Sequence[SampledAnswer], rewards: Tensor) -> dict[str, float]:
        count = len(answers)
        return {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std(dim=1).mean()),
            "equal_groups": float((rewards.amax(1) == rewards.amin(1)).double().mean()),
            "tokens": sum(len(answer.rollout.token_ids) for answer in answers) / count,
            "nfe": sum(answer.rollout.nfe for answer in answers) / count,
            "ended": sum(answer.rollout.finish_reason == "stop" for answer in answers) / count,
            "not_judged": sum(answer.verdict.failure is not None for answer in answers),
            **{f"seconds_{part}": self.seconds[part] for part in PARTS},
        }

    def _over_processes(self, figures: dict[str, float]) -> dict[str, float]:
        """The mean of each metric over the processes, which have equal numbers of answers."""
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.device)
        return dict(zip(figures, self.trainer.strategy.reduce(values, reduce_op="mean").tolist(), strict=True))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] += time.perf_counter() - begun
