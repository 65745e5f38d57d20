"""Ctrl-C and SIGTERM: the first ends the run after the step in progress, a second Ctrl-C at once.

Every finished answer is on the disk by then, so that ending at once loses none.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer

from dlm.distributed.heartbeat import StopFlag

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = "\x1b[?25h"


class Interrupts(Callback):
    """Turns the signals into a throw of the switch while there is work in progress, and into an immediate end before.

    A callback, because Lightning takes SIGTERM for itself just before the loop begins, and its handler talks to all
    ranks: it waits half an hour for those that were not signalled.

    Args:
        stop: thrown by the first signal.
        launched: another process started this one and will end it: only that one listens to a second Ctrl-C.
    """

    def __init__(self, stop: StopFlag, launched: bool) -> None:
        self.stop, self.launched = stop, launched
        self._working = False
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def install(self) -> None:
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._working = True
        self.install()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._working = True
        self.install()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._working:
            if not self.launched:
                self._say("stopped before the first step")
            raise SystemExit(128 + signum)
        if not self.stop:
            if not self.launched:
                self._say("stopping after the step in progress; Ctrl-C again ends at once")
            self.stop.throw(signum)
        elif signum == signal.SIGINT and not self.launched:
            self._say(SHOW_CURSOR if sys.stderr.isatty() else "ended at once")
            os._exit(128 + signum)

    @staticmethod
    def _say(text: str) -> None:
        # os.write, because print is not safe inside a handler that interrupted a print.
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
