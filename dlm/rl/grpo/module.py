"""One step of GRPO as a LightningModule: roll out, reward, score, update. Knows prompts as token ids, and texts only to
have them rewarded."""

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
from dlm.likelihood import Likelihood
from dlm.models.loading import Checkpoint
from dlm.rl.grpo.objective import Objective
from dlm.rl.grpo.optimizer import OptimizerOptions
from dlm.rl.grpo.questions import Question, Step
from dlm.rl.grpo.rewards import Judge
from dlm.rl.likelihoods import Choice, token_logprobs
from dlm.rl.rollout import Rollout, ended_length
from dlm.rl.rollouts import Rollouts
from dlm.sampling import SamplingParams
from dlm.text import TextCodec


@dataclass(frozen=True)
class Options:
    """How a policy is trained.

    Attributes:
        generation: how answers are decoded; its seed stays None.
        group_size: answers to each prompt.
        updates: optimizer steps with the answers of one step.
        objective: from rewards to a loss.
        likelihood: what stands for the log-probability of a token.
        optimizer: learning rate and the like.
        decoder: its limits.
        score_tokens: rows of one forward that scores.
        seed: of everything that is drawn.
    """

    generation: SamplingParams
    group_size: int
    updates: int
    objective: Objective
    likelihood: Choice
    optimizer: OptimizerOptions
    decoder: DecoderOptions
    score_tokens: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """A rollout with its text and its worth."""

    question: Question
    rollout: Rollout
    text: str
    reward: float


class GRPO(LightningModule):
    """A policy in training.

    Args:
        options: how.
        load: makes the checkpoint to train on a device; called once more for the reference where there is one.
        load_decoder: makes the copy that decodes; None decodes with the weights in training themselves.
        codec: shows answers to the reward.
        judge: the reward.
    """

    def __init__(
        self,
        options: Options,
        load: Callable[[torch.device], Checkpoint],
        load_decoder: Callable[[torch.device], Checkpoint] | None,
        codec: TextCodec,
        judge: Judge,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.options, self.codec, self.judge = options, codec, judge
        self._load, self._load_decoder = load, load_decoder
        self.steps_done = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.measured: dict[str, float] = {}

    def configure_model(self) -> None:
        """Load the weights to this process's own device; Lightning may call it twice."""
        if hasattr(self, "checkpoint"):
            return
        options = self.options
        self.checkpoint = self._load(self.device)
        self.backbone = self.checkpoint.backbone.train().requires_grad_(True)
        self.rollouts = Rollouts(
            self.checkpoint if self._load_decoder is None else self._load_decoder(self.device),
            trainer=self.backbone,
            codec=self.codec,
            options=options.decoder,
            score_tokens=options.score_tokens,
        )
        self.reference: Likelihood | None = None
        if options.objective.kl:
            first = self._load(self.device)
            self.reference = Likelihood(first.backbone, first.special, max_tokens=options.score_tokens)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        optimizer, schedule = self.options.optimizer.build(self.backbone.parameters())
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on."""
        optimizer, schedule = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        return {
            "step": self.steps_done,
            "weights": self.backbone.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "answers_not_judged": self.judge.failures,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` was after its step."""
        self.backbone.load_state_dict(state["weights"])
        self.trainer.optimizers[0].load_state_dict(state["optimizer"])
        self.trainer.lr_scheduler_configs[0].scheduler.load_state_dict(state["schedule"])
        self.steps_done, self.judge.failures = state["step"], state["answers_not_judged"]
        self.rollouts.sync(version=self.steps_done)

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:
        """A step holds plain values, which stay on the host."""
        return batch

    def training_step(self, step: Step, batch_idx: int) -> None:
        """Roll out a step's questions and update the weights; `measured` then has the step's figures."""
        self.seconds.clear()
        answers = self.answers(step.questions, self.options.group_size, f"step {step.number}")
        rewards = torch.tensor([answer.reward for answer in answers], dtype=torch.float64)
        groups = rewards.view(len(step.questions), self.options.group_size)
        found = self._update(step.number, [answer.rollout for answer in answers], groups)
        self.steps_done = step.number
        self.rollouts.sync(version=step.number)
        self.measured = self._over_processes({**self._figures(answers, groups), **found})

    def answers(self, questions: Sequence[Question], samples: int, name: str) -> list[Answer]:
        """Decode and reward `samples` answers to each question, those of one question together.

        Args:
            questions: asked.
            samples: to each.
            name: of the occasion, from which with the question's own the noise comes.
        """
        with self._timed("rollout"):
            seeds = [seed_of(self.options.seed, f"{name}, {question.id}") for question in questions]
            params = [replace(self.options.generation, seed=seed) for seed in seeds]
            prompts = [question.token_ids for question in questions]
            rollouts = self.rollouts.generate(prompts, params, n=samples, distributions=False)
        with self._timed("reward"):
            answers = []
            for rollout in rollouts:
                question = questions[rollout.prompt_index]
                through = rollout.replay_token_ids[: self._counted(rollout)]
                text, _, _ = self.codec.show(through, self.options.generation.stop)
                answers.append(Answer(question, rollout, text, self.judge(question.row, text)))
        return answers

    def _update(self, number: int, rollouts: Sequence[Rollout], rewards: Tensor) -> dict[str, float]:
        """Take the step's updates; returns what they were like on average."""
        options, device = self.options, self.backbone.device
        counts = [self._counted(rollout) for rollout in rollouts]
        tokens = torch.tensor(counts)
        mean_tokens = self._over_processes({"tokens": float(sum(counts))})["tokens"]
        weights = options.objective.weights(counts, options.generation.gen_length, mean_tokens)
        weights = weights.repeat_interleave(tokens)
        advantages = options.objective.advantages(rewards).flatten().repeat_interleave(tokens)
        weights, advantages = weights.to(device), advantages.to(device)
        seeds = [
            seed_of(options.seed, f"masks of step {number}, update {update}") or 0 for update in range(options.updates)
        ]
        with self._timed("score"), torch.no_grad():
            policy, reference = self.rollouts.likelihood, self.reference
            # The first update is made by the policy that decoded, whose ratios are 1 whatever they are computed from.
            before = [None, *(self._tokens(policy, rollouts, counts, seed) for seed in seeds[1:])]
            other = [None if reference is None else self._tokens(reference, rollouts, counts, seed) for seed in seeds]
        totals: defaultdict[str, float] = defaultdict(float)
        with self._timed("update"):
            for seed, old, first in zip(seeds, before, other, strict=True):
                new = self._tokens(policy, rollouts, counts, seed, gradients=True)
                loss = options.objective.loss(new, new.detach() if old is None else old, first, advantages, weights)
                totals["gradient_norm"] += self._descend(loss.total)
                totals["loss"] += float(loss.total.detach())
                totals["kl"] += float(loss.kl)
                totals["clipped"] += float(loss.clipped)
        return {name: total / options.updates for name, total in totals.items()}

    def _tokens(
        self, model: Likelihood, rollouts: Sequence[Rollout], counts: Sequence[int], seed: int, gradients: bool = False
    ) -> Tensor:
        """`[tokens]` log-probabilities of the tokens that count, those of the answers end to end."""
        each = token_logprobs(self.options.likelihood, model, rollouts, seed=seed, gradients=gradients)
        return torch.cat([logprobs[:count] for logprobs, count in zip(each, counts, strict=True)])

    def _counted(self, rollout: Rollout) -> int:
        """Tokens that a gradient goes to: the answer's, and what ended it."""
        return ended_length(rollout, self.options.generation.stop, self.codec, self.checkpoint.special.end_ids)

    def _descend(self, loss: Tensor) -> float:
        """One optimizer step; returns the gradient's norm before it was clipped."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        self.manual_backward(loss)
        norm = clip_grad_norm_(self.backbone.parameters(), self.options.optimizer.clip_norm)
        optimizer.step()  # type: ignore[union-attr]  # no list: there is one
        optimizer.zero_grad()  # type: ignore[union-attr]  # as above
        schedule.step()  # type: ignore[union-attr]  # and one schedule
        return float(norm)

    def _figures(self, answers: Sequence[Answer], rewards: Tensor) -> dict[str, float]:
        count = len(answers)
        return {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std(dim=1).mean()),
            "equal_groups": float((rewards.amax(1) == rewards.amin(1)).double().mean()),
            "tokens": sum(len(answer.rollout.token_ids) for answer in answers) / count,
            "nfe": sum(answer.rollout.nfe for answer in answers) / count,
            "ended": sum(answer.rollout.finish_reason == "stop" for answer in answers) / count,
            **{f"seconds_{part}": self.seconds[part] for part in ("rollout", "reward", "score", "update")},
        }

    def _over_processes(self, figures: dict[str, float]) -> dict[str, float]:
        """The mean of each figure over the processes, which have equally many answers."""
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.device)
        return dict(zip(figures, self.trainer.strategy.reduce(values, reduce_op="mean").tolist(), strict=True))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] += time.perf_counter() - begun
