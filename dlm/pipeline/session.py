"""One process's part in a run: prepare the folder, decode with the Trainer, and on rank 0 merge all results.

`prepare` needs neither torch nor Lightning, so that a wrong file or folder is reported within a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from omegaconf import DictConfig

from dlm.cli.command_line import program, quoted, report
from dlm.config.build import instantiate
from dlm.data.prompts import Prompt, check_of, digest, require_prompts
from dlm.distributed.heartbeat import Heartbeat, PeerMonitor, StopFlag
from dlm.distributed.processes import die_with
from dlm.errors import DLMError, IncompleteRunError, RunError
from dlm.runs.launch import Launch
from dlm.runs.leases import LeasePlan, Leases, divide
from dlm.runs.merging import merge
from dlm.runs.other_starts import OtherStarts
from dlm.runs.run_folder import Index, RunFolder, damaged
from dlm.runs.shards import ShardFile, read_answers

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger

    from dlm.decoding.decoder import Decoder
    from dlm.models.io.model_source import ModelSource
    from dlm.pipeline.data import DecodeConfig
    from dlm.pipeline.interrupts import Interrupts
    from dlm.pipeline.writer import ShardWriter
    from dlm.runs.totals import Totals
    from dlm.text import TextCodec

CLAIM = 4
"""Largest claim, in multiples of the sequences that a decoder holds at once."""
PATIENCE = 20.0
"""Seconds that a failed process waits for rank 0 to finish: launchers kill the rest as soon as one process fails."""


def callbacks(trainer: Trainer) -> list[Callback]:
    """The list that the Trainer reads its callbacks from."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    return found


class Session:
    """A run as one process sees it.

    Args:
        config: the checked configuration.
        launch: folder, attempt, launcher.
        overrides: command-line overrides, for the resume command.
    """

    entry: ClassVar[str] = "dlm.predict"
    """The program's name after `python -m`."""

    def __init__(self, config: DictConfig, launch: Launch, overrides: Sequence[str]) -> None:
        self.config, self.launch = config, launch
        self.folder = RunFolder(launch.run_dir)
        kept = [override for override in overrides if not override.startswith("run_dir=")]
        self.command = quoted([*launch.prefix(program(self.entry)), *kept, f"run_dir={launch.run_dir}"])
        self.stop = StopFlag()
        self.prompts: list[Prompt] = []
        self.failures: list[str] = []

    def prepare(self) -> None:
        """Read the prompts and agree with the run folder.

        Raises `DataError`, `ConfigError`, `CheckpointError`, `RunError`.
        """
        if self.launch.parent is not None:
            die_with(self.launch.parent)
        self.prompts = self._read()
        require_prompts(self.prompts)
        self.folder.create(self.launch.attempt)
        self.folder.agree_on_config(self.config, self.command)
        ids = [prompt.id for prompt in self.prompts]
        self.folder.agree_on_index(Index(ids, self.config.generation.n, digest(self.prompts)))
        answered = read_answers(self.folder.shard_files(), self.config.generation.n)
        if answered.missing(ids):  # otherwise the run is merged without a model
            identity = instantiate(self.config.model).identity()
            self.folder.agree_on_model(identity, begun=bool(answered.places))

    def _read(self) -> list[Prompt]:
        """The prompts of the run, in output order."""
        prompts: list[Prompt] = instantiate(self.config.data).read()
        return prompts

    def run(self) -> int:
        """Decode, and on rank 0 merge; returns the exit code. Raises `DLMError`."""
        from dlm.pipeline.interrupts import Interrupts
        from dlm.pipeline.loggers import build_logger, finish
        from dlm.pipeline.trainer import build_trainer, quieten

        interrupts = Interrupts(self.stop, launched=self.launch.parent is not None)
        interrupts.install()
        quieten()
        logger, code = None, 1
        try:
            logger = build_logger(self.config, self.folder.path, self.entry.removeprefix("dlm."))
            trainer = build_trainer(self.config.trainer, [interrupts], logger, self.folder.path)
            code = self._work(trainer, interrupts) if trainer.global_rank == 0 else self._follow(trainer, interrupts)
        except IncompleteRunError:
            raise
        except RunError as error:
            raise RunError(f"{error}:\n  {self.command}") from error
        finally:
            if logger is not None:
                finish(logger, code)
            interrupts.restore()
        return code

    def _follow(self, trainer: Trainer, interrupts: Interrupts) -> int:
        """Run on a rank other than 0. Its exit code only says whether it failed: rank 0 knows what is missing."""
        try:
            return self._work(trainer, interrupts)
        except DLMError as error:
            report(error)
            rank_zero = PeerMonitor(self._attempt, self._workers(1))
            until = time.monotonic() + PATIENCE
            while rank_zero.unfinished() and time.monotonic() < until:
                time.sleep(0.2)
            return 1

    @property
    def _attempt(self) -> Path:
        return self.folder.claims(self.launch.attempt)

    def _workers(self, world: int) -> list[str]:
        """Names of this Trainer's processes."""
        return [f"{self._group()}rank{rank}" for rank in range(world)]

    def _group(self, restart: int | None = None) -> str:
        """Name prefix that separates this Trainer's processes from other array tasks and earlier starts of this one."""
        task, restart = self.launch.array_task, self.launch.array_restart if restart is None else restart
        return "" if task is None else f"task{task}-restart{restart}-" if restart else f"task{task}-"

    def _work(self, trainer: Trainer, interrupts: Interrupts) -> int:
        from dlm.pipeline.progress import ProgressReport
        from dlm.runs.totals import Totals

        workers = self._workers(trainer.world_size)
        worker = workers[trainer.global_rank]
        others = PeerMonitor(self._attempt, [name for name in workers if name != worker])
        earlier = [f"{self._group(restart)}rank{trainer.global_rank}" for restart in range(self.launch.array_restart)]
        claims = Leases(self._attempt, worker, earlier)
        plan = self._plan(claims, trainer.world_size * self.launch.array_size)
        if plan.num_prompts == 0 or (trainer.world_size == 1 and not claims.left(plan)):
            return self._conclude(others, Totals.of([], 0.0), trainer.loggers) if trainer.global_rank == 0 else 0
        with Heartbeat(self._attempt, worker, self.stop, mark=f"{self._group()}stop") as heart:
            progress = None
            if trainer.global_rank == 0:
                rows = plan.num_prompts * self.config.generation.n
                progress = ProgressReport(heart, others, rows, self.config.progress.every_seconds)
                callbacks(trainer).append(progress)
                heart.on_beat(lambda: self._watch(others))
                starts = OtherStarts(self.folder.path / "claims", self.launch.attempt)
                starts.tell()
                heart.on_beat(starts.tell)
            self._decode(trainer, claims, plan, heart)
            if self.stop and self.launch.array_task is not None:  # this task's other processes may not have seen it yet
                claims.give_back(plan, self._answered())
            heart.update(state="stopped" if self.stop else "done")
            if progress is None:
                return 0
            others.wait()
            return self._conclude(others, progress.totals(), trainer.loggers)

    def _plan(self, claims: Leases, world: int) -> LeasePlan:
        """The work of this attempt: the prompts without an answer."""
        answered = self._answered()
        costs = [(prompt.size, n) for n, prompt in enumerate(self.prompts) if n not in answered]
        plan = claims.agree(LeasePlan(divide(costs, world, CLAIM * self.config.decoder.max_num_seqs), world))
        if max((number for claim in plan.claims for number in claim), default=0) >= len(self.prompts):
            raise damaged(self._attempt / "plan.json", "it names prompts that do not exist")
        if self.launch.array_task is None:
            return plan
        # A task of an array may start hours after the plan was made.
        return LeasePlan([[n for n in claim if n not in answered] for claim in plan.claims], plan.world)

    def _answered(self) -> set[int]:
        """Indices of the prompts that have all their answers."""
        done = read_answers(self.folder.shard_files(), self.folder.read_index().samples).done
        return {number for number, prompt in enumerate(self.prompts) if done(prompt.id)}

    def _watch(self, others: PeerMonitor) -> None:
        """Stop early if another process has failed: the launcher is about to kill this one too."""
        self.failures = others.failed()
        if self.failures:
            self.stop.throw()

    def _decode(self, trainer: Trainer, claims: Leases, plan: LeasePlan, heart: Heartbeat) -> None:
        from dlm.pipeline.writer import ShardWriter

        generation = self.config.generation
        shard = ShardFile(self.folder.shards / f"{self.launch.attempt}-{heart.status.worker}.jsonl")
        writer = ShardWriter(shard, self.prompts, tuple(generation.stop), generation.n, heart)
        callbacks(trainer).append(writer)
        module, data = self._parts(instantiate(self.config.model), claims, plan, writer)
        trainer.predict(module, datamodule=data, return_predictions=False)

    def _parts(
        self, source: ModelSource, claims: Leases, plan: LeasePlan, writer: ShardWriter
    ) -> tuple[LightningModule, LightningDataModule]:
        """The module with the model, and the data module with this process's share of the prompts."""
        from dlm.decoding.options import DecoderOptions
        from dlm.pipeline.data import PromptDataModule
        from dlm.pipeline.module import DecodingOptions, DiffusionLM

        config, recipe = self.config, self._recipe(source)
        positions = source.architecture()[0].max_positions
        codec = partial(self._codec, source)
        data = PromptDataModule(self.prompts, codec, recipe, claims, plan, writer, self.stop, positions)
        share = plan.fair_share() * config.generation.n
        limits = {**config.decoder, "max_num_seqs": min(config.decoder.max_num_seqs, share)}
        ready = partial(self._ready, writer)
        module = DiffusionLM(DecodingOptions(source.load, DecoderOptions(**limits), ready))
        return module, data

    def _ready(self, writer: ShardWriter, decoder: Decoder) -> None:
        """Connect the decoder to the stop flag and the writer, and report this process's arithmetic and whether it
        differs from what the run started with."""
        self.stop.on_stop(decoder.stop)
        writer.stats = decoder.stats
        worker, text = writer.heart.status.worker, str(decoder.arrangement)
        begun = self.folder.begun_with_arithmetic(text)
        if worker.endswith("rank0"):
            print(f"computing in {text}", file=sys.stderr, flush=True)
        if begun != text:
            print(
                f"{worker} computes in {text}, but the run was started in {begun}: its answers may differ in bits from "
                "those computed there",
                file=sys.stderr,
                flush=True,
            )

    def _recipe(self, source: ModelSource) -> DecodeConfig:
        """The decoding config for every prompt."""
        from dlm.decoding.algorithms import complete
        from dlm.decoding.params import PARAM_NAMES, SamplingParams
        from dlm.pipeline.data import DecodeConfig

        config, generation = self.config, self.config.generation
        source.traits()  # rejects a checkpoint of another family before reading its tokenizer
        engine, sampler = complete(
            instantiate(config.engine), instantiate(config.sampler), config.algorithm, source.traits
        )
        return DecodeConfig(
            params=SamplingParams(**{name: generation[name] for name in PARAM_NAMES}),
            engine=engine,
            sampler=sampler,
            stop=tuple(generation.stop),
        )

    def _codec(self, source: ModelSource) -> TextCodec:
        from dlm.text import TextCodec

        chat = source.chat if self.config.data.chat_template is None else self.config.data.chat_template
        return TextCodec.load(source.tokenizer_folder(), chat)

    def _trace(self) -> Path | None:
        """Write the trace page, which shows how answers were revealed, if configured; returns its path."""
        from dlm.decoding.request import Request
        from dlm.runs.summary import read_predictions

        if self.config.trace.get("_target_") is None:
            return None
        source: ModelSource = instantiate(self.config.model)
        recipe = self._recipe(source)
        instantiate(self.config.trace).write(
            self.folder.trace,
            read_predictions(self.folder.predictions),
            self._codec(source),
            lambda ids: Request("", ids, recipe.params, recipe.engine, recipe.sampler),
        )
        return self.folder.trace

    def _conclude(self, others: PeerMonitor, totals: Totals, loggers: Sequence[Logger]) -> int:
        """Merge, report the results, and choose the exit code."""
        try:
            merged = merge(self.folder, self.command)
        except IncompleteRunError as error:
            for failure in others.failed():
                print(failure, file=sys.stderr)
            if self.stop.signum is not None:
                print(f"stopped: {error}", file=sys.stderr)
                return 128 + self.stop.signum
            if self.launch.array_size > 1 and not others.failed():
                print(
                    f"this task of the array is done; {error}\nonce no other task is running. To list what is missing: "
                    f"python -m dlm.merge run_dir={self.folder.path}",
                    file=sys.stderr,
                )
                return 0
            raise
        self._tell(totals, loggers)
        merged.require_answers()
        return 0

    def _tell(self, totals: Totals, loggers: Sequence[Logger]) -> None:
        """Report the summary on standard output, in the folder, and to the loggers."""
        from dlm.pipeline.loggers import attempt, log_summary
        from dlm.runs.summary import figures, show, summarize, write_summary

        summary = summarize(self.folder.predictions, check_of(self.config.data.get("_target_")))
        write_summary(self.folder.summary, summary, totals)
        show(summary, totals, self.folder.predictions, self._trace())
        for logger in loggers:
            attempt("the summary", partial(log_summary, logger, figures(summary, totals), totals.rows, self.folder))
