"""Progress of a running decode: sequences, visible tokens per second, tokens per forward, time remaining.

A live bar on a terminal, a plain line every few seconds elsewhere, and the same metrics to the logger. Driven by the
heartbeat, so that a slow step does not delay it.
"""

from __future__ import annotations

import sys
import time
from functools import partial

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dlm.distributed.heartbeat import Heartbeat, PeerMonitor
from dlm.pipeline.loggers import attempt, define_steps, log_progress
from dlm.runs.totals import Totals, clock


class ProgressReport(Callback):
    """Shows the progress of the whole run; created on rank 0 only.

    Args:
        heart: this process's status, and the heartbeat.
        others: the other processes.
        total: rows that this attempt will write.
        every: seconds between plain lines, and between logger entries.
    """

    def __init__(self, heart: Heartbeat, others: PeerMonitor, total: int, every: float) -> None:
        self.heart, self.others, self.total, self.every = heart, others, total, every
        self._bar: Progress | None = None
        self._begun = self._shown = time.monotonic()
        self._ended: float | None = None

    def totals(self) -> Totals:
        end = self._ended if self._ended is not None else time.monotonic()
        return Totals.of([self.heart.status, *self.others.statuses()], end - self._begun)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = self._shown = time.monotonic()
        self._loggers = list(trainer.loggers)
        for logger in self._loggers:
            attempt("the axis of the progress", partial(define_steps, logger))
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("decoding"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._task = self._bar.add_task("decoding", total=self.total, figures="")
            self._bar.start()
        self.heart.on_beat(self._beat)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()
        self._log(self.totals())  # so that the curve reaches the end, and short runs have one

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Stop the clock and the display; idempotent."""
        if self._ended is None:
            self._ended = time.monotonic()
            if self._bar is not None:
                self._show(self.totals())
                self._bar.stop()

    def _beat(self) -> None:
        if self._ended is not None:
            return
        totals, now = self.totals(), time.monotonic()
        due = now - self._shown >= self.every
        if self._bar is not None:
            self._show(totals)
        elif due:
            print(f"{totals.rows}/{self.total} sequences, {self._figures(totals)}", file=sys.stderr, flush=True)
        if due:
            self._shown = now
            self._log(totals)

    def _show(self, totals: Totals) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=totals.rows, figures=self._figures(totals))

    def _figures(self, totals: Totals) -> str:
        eta = totals.eta(self.total)
        left = "" if eta is None else f", {clock(eta)} to go"
        return f"{totals.tokens_per_second:.1f} tokens/s, {totals.tokens_per_forward:.2f} tokens/forward{left}"

    def _log(self, totals: Totals) -> None:
        # A logger that fails is dropped: it would report the failure every few seconds.
        self._loggers = [one for one in self._loggers if attempt("progress", partial(log_progress, one, totals))]
