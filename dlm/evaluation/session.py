"""An evaluation: a run of predict whose prompts are a task's questions, and whose predictions are judged at its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig

from dlm.config.build import instantiate
from dlm.data.prompts import Prompt
from dlm.errors import ConfigError
from dlm.evaluation.report import Published, TaskReport, report_of, show
from dlm.evaluation.results import judge_answers, judge_choices, judged, processors, write_results
from dlm.evaluation.sandbox.run import Sandbox, reads_are_closed, warn_of_open_files
from dlm.evaluation.tasks import ChoiceTask, GenerationTask
from dlm.pipeline.session import Session
from dlm.runs.launch import Launch
from dlm.runs.leases import LeasePlan, Leases
from dlm.runs.whole_files import replace

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.loggers import Logger

    from dlm.likelihood import Scheme
    from dlm.models.io.model_source import ModelSource
    from dlm.pipeline.writer import ShardWriter
    from dlm.runs.totals import Totals

SPEED = ("tokens", "seconds", "tokens_per_second", "occupancy")
"""Figures of an attempt; one that had nothing left to do keeps those of the one before it."""


class EvaluationSession(Session):
    """A run as one process sees it.

    Leaves in its folder, besides what predict leaves, `results.jsonl` (a `Result` for each sample) and in
    `summary.json` the figures of `TaskReport.figures` and of the speed.
    """

    entry: ClassVar[str] = "dlm.evaluate"

    def __init__(self, config: DictConfig, launch: Launch, overrides: Sequence[str]) -> None:
        super().__init__(config, launch, overrides)
        self.task: GenerationTask | ChoiceTask = instantiate(config.task)

    def prepare(self) -> None:
        if isinstance(self.task, ChoiceTask):
            scheme_of(self.task)  # refused before there is a folder
        elif self.task.judge(Sandbox()).executes:
            warn_of_open_files()
        super().prepare()

    def _read(self) -> list[Prompt]:
        return self.task.read(instantiate(self.config.data))

    def _parts(
        self, source: ModelSource, claims: Leases, plan: LeasePlan, writer: ShardWriter
    ) -> tuple[LightningModule, LightningDataModule]:
        if isinstance(self.task, GenerationTask):
            return super()._parts(source, claims, plan, writer)
        from dlm.pipeline.scoring import ScoringDataModule, ScoringLM

        codec, positions = partial(self._codec, source), source.architecture()[0].max_positions
        data = ScoringDataModule(self.prompts, codec, claims, plan, writer, self.stop, positions)
        limit = self.config.decoder.max_num_batched_tokens
        return ScoringLM(source.load, scheme_of(self.task), self.config.generation.seed, limit), data

    def _tell(self, totals: Totals, loggers: Sequence[Logger]) -> None:
        from dlm.pipeline.loggers import attempt, log_summary
        from dlm.runs.summary import read_summary

        report = self._judge()
        path = self.folder.summary
        speed: dict[str, Any] = dict.fromkeys(SPEED)
        if totals.rows:
            speed = {name: getattr(totals, name) for name in SPEED}
        else:
            before = read_summary(path)
            speed = {name: before.get(name) for name in SPEED}
        figures = {**report.figures(), **speed}
        replace(path, [json.dumps(figures, indent=2).encode() + b"\n"])
        files = {"predictions": str(self.folder.predictions), "results": str(self.folder.results)}
        trace = self._trace()
        if trace is not None:
            files["revealed step by step"] = str(trace)
        show(report, speed, {**files, "summary": str(path)})
        for logger in loggers:
            attempt("the summary", partial(log_summary, logger, figures, totals.rows, self.folder))

    def _judge(self) -> TaskReport:
        """Judge every prediction, and keep the results."""
        from dlm.runs.summary import read_predictions

        checking, task, how = self.config.checking, self.task, {"samples": self.config.generation.n}
        threads = 1
        if isinstance(task, GenerationTask):
            sandbox = Sandbox(checking.seconds, checking.memory_mib)
            checker = task.judge(sandbox)
            judge = judge_answers(checker, task.answer_field)
            if checker.executes:
                threads = checking.threads or processors()
                how["sandbox"] = {**asdict(sandbox), "reads_are_closed": reads_are_closed()}
        else:
            judge = judge_choices(task)
            how |= {"scheme": task.scheme, "by": task.by}
        rows = read_predictions(self.folder.predictions)
        results = list(judged(rows, judge, task.group_field, threads))
        write_results(self.folder.results, results)
        metric = "pass" if isinstance(task, GenerationTask) else "accuracy"
        published = None
        if self.config.published.score is not None:
            published = Published(**{name: self.config.published[name] for name in ("score", "tolerance", "source")})
        report = report_of(task.name, results, metric, list(checking.k), checking.level, published)
        report.how = how
        return report


def scheme_of(task: ChoiceTask) -> Scheme:
    """The task's likelihood scheme.

    Raises:
        ConfigError: there is no such scheme, or it has no such option.
    """
    from dlm.likelihood import SCHEMES

    if task.scheme not in SCHEMES:
        raise ConfigError(f"task.scheme={task.scheme}: no such scheme; choose one of {', '.join(SCHEMES)}")
    try:
        return SCHEMES[task.scheme](**dict(task.scheme_options or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"task.scheme_options: {error}") from error
