"""One process's part in a run: agree on the folder, train, and as rank 0 save the model and say what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from dlm.command_line import program, quoted
from dlm.config import instantiate
from dlm.decoding.options import DecoderOptions
from dlm.errors import ConfigError, RunError
from dlm.models.loading import save_checkpoint
from dlm.pipeline.interrupts import Interrupts
from dlm.pipeline.launch import Launch
from dlm.pipeline.loggers import attempt, build_logger, finish
from dlm.pipeline.model_source import ModelSource
from dlm.pipeline.ranks import StopSwitch, die_with
from dlm.pipeline.run_folder import RunFolder
from dlm.pipeline.trainer import build_trainer, quieten
from dlm.rl.grpo.config import generation_of
from dlm.rl.grpo.module import GRPO, Options
from dlm.rl.grpo.progress import Progress, log_summary
from dlm.rl.grpo.questions import Curriculum, Steps, questions_of
from dlm.rl.grpo.record import Record
from dlm.rl.grpo.rewards import Judge
from dlm.text import TextCodec

ENTRY = "dlm.rl.grpo"


class Session:
    """A run as one process sees it.

    Args:
        config: the checked configuration.
        launch: folder, attempt, launcher.
        overrides: what was typed, for the command that resumes.
    """

    def __init__(self, config: DictConfig, launch: Launch, overrides: Sequence[str]) -> None:
        self.config, self.launch = config, launch
        self.folder, self.record = RunFolder(launch.run_dir), Record(launch.run_dir)
        kept = [override for override in overrides if not override.startswith("run_dir=")]
        self.command = quoted([*launch.prefix(program(ENTRY)), *kept, f"run_dir={launch.run_dir}"])
        self.stop = StopSwitch()

    def run(self) -> int:
        """Train; returns the exit code. Raises `DLMError`."""
        if self.launch.parent is not None:
            die_with(self.launch.parent)
        source: ModelSource = instantiate(self.config.model)
        if source.dtype == "auto":  # small updates are lost on half-precision weights
            source = replace(source, dtype="float32")
        codec = TextCodec.load(source.tokenizer_folder(), self._chat(source))
        curriculum = self._curriculum(codec)
        self.folder.create(self.launch.attempt)
        self.folder.agree_on_config(self.config, self.command)
        interrupts = Interrupts(self.stop, launched=self.launch.parent is not None)
        interrupts.install()
        quieten()
        logger, code = None, 1
        try:
            logger = build_logger(self.config, self.folder.path, "grpo")
            code = self._train(source, codec, curriculum, [interrupts], logger)
        except RunError as error:
            raise RunError(f"{error}; what was kept goes on with\n  {self.command}") from error
        finally:
            if logger is not None:
                finish(logger, code)
            interrupts.restore()
        return code

    def _chat(self, source: ModelSource) -> bool | None:
        chosen: bool | None = self.config.data.chat_template
        return source.chat if chosen is None else chosen

    def _curriculum(self, codec: TextCodec) -> Curriculum:
        config = self.config
        questions = questions_of(instantiate(config.data).read(), codec)
        return Curriculum(questions, config.validation.prompts, config.prompts_per_step, config.seed)

    def _train(
        self,
        source: ModelSource,
        codec: TextCodec,
        curriculum: Curriculum,
        callbacks: list[Any],
        logger: Logger | None,
    ) -> int:
        config, record = self.config, self.record
        options = self._options()
        copy = None if config.rollout_dtype is None else replace(source, dtype=config.rollout_dtype).load
        module = GRPO(options, source.load, copy, codec, Judge(instantiate(config.reward).function()))
        progress = Progress(
            record,
            {"command": self.command, "seed": config.seed},
            curriculum.validation,
            config.validation.samples,
            config.validation.every,
            config.keep_every,
            config.steps,
            self.stop,
        )
        settings = {"precision": config.precision, "max_epochs": 1}
        trainer = build_trainer(config.trainer, [*callbacks, progress], logger, self.folder.path, **settings)
        world = trainer.world_size
        if config.prompts_per_step % world:
            raise ConfigError(f"prompts_per_step={config.prompts_per_step} does not divide among {world} processes")
        done = record.kept()
        first = 1 if done is None else done["step"] + 1
        if first <= config.steps:
            steps = Steps(curriculum, first, config.steps, trainer.global_rank, world)
            trainer.fit(module, DataLoader(steps, batch_size=None))
        if self.stop.signum is not None and module.steps_done < config.steps:
            return self._stopped(trainer, module)
        if trainer.global_rank == 0 and first <= config.steps:
            self._conclude(trainer, module, codec, progress)
        return 0

    def _options(self) -> Options:
        config = self.config
        return Options(
            generation=generation_of(config),
            group_size=config.group_size,
            updates=config.updates,
            objective=instantiate(config.objective),
            likelihood=instantiate(config.likelihood),
            optimizer=instantiate(config.optimizer),
            decoder=DecoderOptions(**config.decoder),
            score_tokens=config.score_tokens,
            seed=config.seed,
        )

    def _stopped(self, trainer: Trainer, module: GRPO) -> int:
        if trainer.global_rank == 0:
            print(f"stopped after step {module.steps_done}; to go on:\n  {self.command}", flush=True)
        return 128 + (self.stop.signum or 0)

    def _conclude(self, trainer: Trainer, module: GRPO, codec: TextCodec, progress: Progress) -> None:
        """Save the model and say what came of it."""
        checkpoint, folder = module.checkpoint, self.record.checkpoint
        save_checkpoint(checkpoint.backbone, checkpoint.special, folder, family=checkpoint.family)
        codec.tokenizer.save_pretrained(folder)
        summary = self.record.conclude(progress.seconds, module.judge.failures)
        for logger in trainer.loggers:
            attempt("the summary", partial(log_summary, logger, summary, progress.answers, self.record))
        print(in_words(summary))
        print(f"model: {folder}")


def in_words(summary: dict[str, Any]) -> str:
    """A run's end in one line."""
    spent = ", ".join(f"{name} {share:.0%}" for name, share in summary["share_of_step_time"].items())
    reward = ""
    if summary["reward_before"] is not None:
        reward = f"reward {summary['reward_before']:.3f} -> {summary['reward_after']:.3f}, "
    failures = summary["answers_not_judged"]
    unjudged = f"; {failures} answers the reward failed on are worth 0" if failures else ""
    return f"{reward}{summary['steps']} steps in {summary['minutes']:.1f} minutes ({spent}){unjudged}"
