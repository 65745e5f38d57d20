"""One process's part in a run: agree on the folder, train, and on rank 0 save the model and print the results."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from dlm.cli.command_line import program, quoted
from dlm.config.build import instantiate
from dlm.data.prompts import digest
from dlm.decoding.options import DecoderOptions
from dlm.distributed.heartbeat import StopFlag
from dlm.distributed.processes import die_with
from dlm.errors import ConfigError, RunError
from dlm.models.io.model_source import ModelSource
from dlm.pipeline.interrupts import Interrupts
from dlm.pipeline.loggers import attempt, build_logger, finish
from dlm.pipeline.trainer import build_trainer, quieten
from dlm.rl.grpo.config import generation_of
from dlm.rl.grpo.module import GRPO, Options
from dlm.rl.grpo.progress import TrainingProgress, log_summary
from dlm.rl.grpo.prompts import PromptSampler, Steps, questions_of
from dlm.rl.grpo.record import Record
from dlm.rl.grpo.rewards import RewardRunner
from dlm.runs.launch import Launch
from dlm.runs.lock import locked
from dlm.runs.run_folder import Index, RunFolder
from dlm.text import TextCodec

ENTRY = "dlm.rl.grpo"
FREE = ("trainer", "logger", "decoder", "run_dir", "steps", "keep_every", "validation.every")
"""Config parts that may change on resume, because they affect no step."""


class GrpoSession:
    """A run as one process sees it.

    Args:
        config: the checked configuration.
        launch: folder, attempt, launcher.
        overrides: command-line overrides, for the resume command.
    """

    def __init__(self, config: DictConfig, launch: Launch, overrides: Sequence[str]) -> None:
        self.config, self.launch = config, launch
        self.folder, self.record = RunFolder(launch.run_dir), Record(launch.run_dir)
        kept = [override for override in overrides if not override.startswith("run_dir=")]
        self.command = quoted([*launch.prefix(program(ENTRY)), *kept, f"run_dir={launch.run_dir}"])
        self.stop = StopFlag()

    def run(self) -> int:
        """Train; returns the exit code. Raises `DLMError`."""
        if self.launch.parent is not None:
            die_with(self.launch.parent)
        source: ModelSource = instantiate(self.config.model)
        if source.dtype == "auto" and not self.config.lora.rank:  # half-precision weights lose small updates
            source = replace(source, dtype="float32")
        codec = TextCodec.load(source.tokenizer_folder(), self._chat(source))
        curriculum = self._prepare(source, codec)
        steps, kept = self.config.steps, self.record.steps_kept()
        if kept > steps:
            raise ConfigError(f"steps={steps}: this run has made {kept}; write at least that many, or another run_dir")
        if self.record.through(steps):
            print(f"this run is already complete; {self._trained()}")
            return 0
        interrupts = Interrupts(self.stop, launched=self.launch.parent is not None)
        interrupts.install()
        quieten()
        logger, code = None, 1
        try:
            logger = build_logger(self.config, self.folder.path, "grpo")
            code = self._train(source, codec, curriculum, [interrupts], logger)
        except RunError as error:
            if not self.record.state.exists():
                raise
            raise RunError(f"{error}; to resume from the last saved state:\n  {self.command}") from error
        finally:
            if logger is not None:
                finish(logger, code)
            interrupts.restore()
        return code

    def _chat(self, source: ModelSource) -> bool | None:
        chosen: bool | None = self.config.data.chat_template
        return source.chat if chosen is None else chosen

    def _prepare(self, source: ModelSource, codec: TextCodec) -> PromptSampler:
        """Read the prompts and agree with the run folder.

        Raises `DataError`, `ConfigError`, `CheckpointError`, `RunError`.
        """
        config = self.config
        prompts = instantiate(config.data).read()
        positions = source.architecture()[0].max_positions
        questions = questions_of(prompts, codec, instantiate(config.reward).needs, positions)
        curriculum = PromptSampler(questions, config.validation.prompts, config.prompts_per_step, config.seed)
        self.folder.create(None)
        self.folder.agree_on_config(config, self.command, FREE)
        self.folder.agree_on_index(Index([prompt.id for prompt in prompts], config.group_size, digest(prompts)))
        self.folder.agree_on_model(source.identity(), begun=self.record.state.exists())
        return curriculum

    def _train(
        self,
        source: ModelSource,
        codec: TextCodec,
        curriculum: PromptSampler,
        callbacks: list[Any],
        logger: Logger | None,
    ) -> int:
        config = self.config
        copy = None if config.rollout_dtype is None else replace(source, dtype=config.rollout_dtype).load
        module = GRPO(self._options(), source.load, copy, codec, RewardRunner(instantiate(config.reward).function()))
        progress = TrainingProgress(
            self.record,
            header={"command": self.command, "seed": config.seed},
            curriculum=curriculum,
            samples=config.validation.samples,
            measure_every=config.validation.every,
            keep_every=config.keep_every,
            last=config.steps,
            stop=self.stop,
        )
        settings = {"precision": config.precision, "max_epochs": 1}
        trainer = build_trainer(config.trainer, [*callbacks, progress], logger, self.folder.path, **settings)
        world = trainer.world_size
        if config.prompts_per_step % world:
            raise ConfigError(f"prompts_per_step={config.prompts_per_step} is not divisible by the {world} processes")
        with locked(self.folder.path) if trainer.global_rank == 0 else nullcontext():
            steps = Steps(curriculum, self.record.steps_kept() + 1, config.steps, trainer.global_rank, world)
            self._fit(trainer, module, steps)
            stopped = module.steps_done < config.steps  # on request, here or in another process
            if trainer.global_rank == 0 and stopped:
                print(f"stopped after step {module.steps_done}; to resume:\n  {self.command}", flush=True)
            elif trainer.global_rank == 0:
                self._conclude(trainer, module, codec, progress)
            part(trainer)
        return 128 + (self.stop.signum or signal.SIGTERM) if stopped else 0

    def _fit(self, trainer: Trainer, module: GRPO, steps: Steps) -> None:
        try:
            trainer.fit(module, DataLoader(steps, batch_size=None))
        except RuntimeError as error:
            if "onnection" not in str(error):
                raise
            # gloo and NCCL raise this when another process is gone; that one has reported its own reason.
            raise RunError(f"process {trainer.global_rank} has lost another: {str(error).splitlines()[0]}") from error

    def _options(self) -> Options:
        config = self.config
        return Options(
            generation=generation_of(config),
            group_size=config.group_size,
            updates=config.updates,
            objective=instantiate(config.objective),
            likelihood=instantiate(config.likelihood),
            optimizer=instantiate(config.optimizer),
            lora=instantiate(config.lora),
            decoder=DecoderOptions(**config.decoder),
            score_tokens=config.score_tokens,
            seed=config.seed,
        )

    def _conclude(self, trainer: Trainer, module: GRPO, codec: TextCodec, progress: TrainingProgress) -> None:
        """Save the model, and log and print the summary."""
        path = self.record.adapter if self.config.lora.rank else self.record.checkpoint
        self.record.save(
            path, partial(module.learner.save, tokenizer=codec.tokenizer, base=self.config.model.get("path"))
        )
        summary = self.record.conclude(progress.seconds)
        for logger in trainer.loggers:
            attempt("the summary", partial(log_summary, logger, summary, progress.answers, self.record))
        print(in_words(summary))
        print(self._trained())

    def _trained(self) -> str:
        """Where the trained adapter or model is."""
        if self.config.lora.rank:
            return f"adapter: {self.record.adapter} (use it with model.adapter_path=)"
        return f"model: {self.record.checkpoint}"


def part(trainer: Trainer) -> None:
    """Wait for the other processes and leave the group together: a process that leaves alone may be killed while
    it exits, and under torchrun those that are still writing with it."""
    trainer.strategy.barrier()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def in_words(summary: dict[str, Any]) -> str:
    """The summary of a run in one line."""
    spent = ", ".join(f"{name} {share:.0%}" for name, share in summary["share_of_step_time"].items())
    reward = ""
    if summary["reward_before"] is not None:
        reward = f"reward {summary['reward_before']:.3f} -> {summary['reward_after']:.3f}, "
    failures = summary["answers_not_judged"]
    unjudged = f"; {failures} answers that the reward failed on score 0" if failures else ""
    return f"{reward}{summary['steps']} steps in {summary['minutes']:.1f} minutes ({spent}){unjudged}"
