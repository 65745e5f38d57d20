"""Ctrl-C and SIGTERM: the first signal ends the run after the step in progress, a second Ctrl-C immediately.

Every finished answer is already on disk, so that ending immediately loses none.
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
    """Handles the signals: sets the stop flag while work is in progress, and exits immediately before that.

    A callback, because Lightning installs its own SIGTERM handler just before the loop begins, and that one
    synchronizes with all ranks: it waits half an hour for those that got no signal.

    Args:
        stop: set by the first signal.
        launched: another process started this one and will end it; only that one reacts to a second Ctrl-C.
    """

    def __init__(self, stop: StopFlag, launched: bool) -> None:
        self.stop, self.launched = stop, launched
        self._working = False
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def install(self) -> None:
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Restore the previous signal handlers."""
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
                self._say("stopping after the step in progress; press Ctrl-C again to stop immediately")
            self.stop.throw(signum)
        elif signum == signal.SIGINT and not self.launched:
            self._say(SHOW_CURSOR if sys.stderr.isatty() else "stopped immediately")
            os._exit(128 + signum)

    @staticmethod
    def _say(text: str) -> None:
        # os.write, because print is not reentrant and the signal may have interrupted one.
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
