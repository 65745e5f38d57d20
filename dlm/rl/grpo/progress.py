"""What happens around the steps: validation, checkpoints, logging, and stopping on request."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from dlm.distributed.heartbeat import StopFlag
from dlm.pipeline.loggers import TABLE_ROWS, attempt
from dlm.rl.grpo.module import GRPO, SampledAnswer
from dlm.rl.grpo.prompts import PromptSampler
from dlm.rl.grpo.record import Record


class TrainingProgress(Callback):
    """Rank 0 writes and logs; all processes validate, and agree on when to stop.

    Args:
        record: the run's files.
        header: first line of the record.
        curriculum: provides the held-out questions; without any, nothing is validated.
        samples: answers per held-out question.
        measure_every, keep_every: steps between validations and between saved states; None: only at the end.
        last: last step of the run.
        stop: ends the run early, after the step in progress.
    """

    def __init__(
        self,
        record: Record,
        header: dict[str, Any],
        curriculum: PromptSampler,
        samples: int,
        measure_every: int | None,
        keep_every: int | None,
        last: int,
        stop: StopFlag,
    ) -> None:
        self.record, self.header, self.curriculum, self.samples = record, header, curriculum, samples
        self.measure_every, self.keep_every, self.last, self.stop = measure_every, keep_every, last, stop
        self.spent, self.begun = 0.0, time.perf_counter()
        self.measured = -1
        self.answers: list[dict[str, Any]] = []

    @property
    def seconds(self) -> float:
        """Duration of the run over all its attempts."""
        return self.spent + time.perf_counter() - self.begun

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(GRPO, pl_module)
        state = self.record.kept()
        if state is not None:
            self.spent, self.measured = state["seconds"], state["measured"]
            module.restore(state)
        else:
            module.check(self.curriculum.questions)
        if trainer.is_global_zero:
            self.record.begin(self.header, None if state is None else module.steps_done)
        if self._due(self.measure_every, module.steps_done) or state is None:
            self._measure(trainer, module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = cast(GRPO, pl_module)
        number = module.steps_done
        self._tell(trainer, number, module.measured)
        if trainer.is_global_zero:
            print(f"step {number}/{self.last}: {in_words(module.measured)}", flush=True)
        ending = trainer.strategy.reduce_boolean_decision(bool(self.stop), all=False)
        if self._due(self.measure_every, number) and not (ending and number < self.last):
            self._measure(trainer, module)
        if (ending or self._due(self.keep_every, number)) and trainer.is_global_zero:
            self.record.keep({**module.state(), "seconds": self.seconds, "measured": self.measured})
        trainer.should_stop = ending

    def _due(self, every: int | None, number: int) -> bool:
        return number == self.last or (every is not None and number % every == 0)

    def _measure(self, trainer: Trainer, module: GRPO) -> None:
        """Record the mean reward of the held-out questions, decoded with the same noise each time."""
        number = module.steps_done
        questions = self.curriculum.validation
        if not questions or self.measured == number:
            return
        self.measured = number
        mine = questions[trainer.global_rank :: trainer.world_size]
        rows = [row_of(number, answer) for answer in module.answers(mine, self.samples, "validation")] if mine else []
        self.answers = _gathered(rows)
        if not trainer.is_global_zero:
            return
        self.record.append(self.record.answers, self.answers)
        means = (
            torch.tensor([row["reward"] for row in self.answers], dtype=torch.float64).view(-1, self.samples).mean(1)
        )
        reward, error = float(means.mean()), float(means.std()) / math.sqrt(len(means))
        failures = sum(row["not_judged"] is not None for row in self.answers)
        told = {"validation_reward": reward, "validation_stderr": error, "not_judged": failures}
        self._tell(trainer, number, told)
        print(f"step {number}: reward of {len(means)} held-out prompts {reward:.3f} ± {error:.3f}", flush=True)

    def _tell(self, trainer: Trainer, number: int, figures: dict[str, float]) -> None:
        """Write metrics to the record and the loggers."""
        if not trainer.is_global_zero:
            return
        self.record.append(self.record.training, [{"step": number, "seconds": round(self.seconds, 2), **figures}])
        for logger in trainer.loggers:
            attempt("a step", partial(logger.log_metrics, figures, step=number))


def in_words(figures: dict[str, float]) -> str:
    """A step's metrics in one line."""
    apart = f"KL {figures['kl']:.4f}, " if "kl" in figures else ""
    spent = ", ".join(f"{part} {figures[f'seconds_{part}']:.2f} s" for part in ("rollout", "score", "update"))
    length = f"{figures['tokens']:.1f} tokens in {figures['nfe']:.1f} forwards"
    return f"reward {figures['reward']:.3f}, {apart}{length}; {spent}"


def row_of(step: int, answer: SampledAnswer) -> dict[str, Any]:
    """A validation answer as a line of `answers.jsonl`."""
    rollout = answer.rollout
    return {
        "step": step,
        "id": answer.question.id,
        "sample": rollout.sample_index,
        "prompt": answer.question.row["prompt"],
        "text": answer.text,
        "reward": answer.verdict.reward,
        "not_judged": answer.verdict.failure,
        "nfe": rollout.nfe,
        "finish_reason": rollout.finish_reason,
    }


def log_summary(logger: Logger, summary: dict[str, Any], answers: Sequence[dict[str, Any]], record: Record) -> None:
    """Log the summary of a run; for W&B also the last validation answers as a table and the record as an artifact."""
    figures = {f"summary/{name}": value for name, value in summary.items() if isinstance(value, int | float)}
    if not isinstance(logger, WandbLogger):
        logger.log_metrics(figures, step=summary["steps"])
        logger.save()
        return
    import wandb

    table = wandb.Table(columns=["id", "sample", "prompt", "text", "reward", "nfe"])
    for row in islice(answers, TABLE_ROWS):
        table.add_data(row["id"], row["sample"], str(row["prompt"]), row["text"], row["reward"], row["nfe"])
    logger.experiment.summary.update(figures)
    logger.experiment.log({"answers": table})
    artifact = wandb.Artifact(f"record-{record.folder.name}", type="record")
    for path in filter(Path.exists, (record.training, record.answers)):
        artifact.add_file(str(path))
    logger.experiment.log_artifact(artifact)


def _gathered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all processes, grouped by question."""
    if not torch.distributed.is_initialized():
        return rows
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
