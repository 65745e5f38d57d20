"""A server whose forwards stand still for as long as there is a file, or from the forward on whose number it holds:
`python -m tests.serving.held_server` takes the arguments of `python -m dlm.serve`, and the file's path from `HOLD`.
For what only a process of its own can show; see `inside.Held` for the rest."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torch import Tensor

from dlm import serve
from dlm.decoding.decoder import Decoder
from dlm.decoding.packing import Batch
from dlm.serving.engine import service

HOLD = "DLM_TEST_HOLD"


class HeldDecoder(Decoder):
    """Decodes as the real one does, when it may."""

    def _forward(self, batch: Batch) -> Tensor:
        while self.stats.num_steps >= _allowed():
            time.sleep(0.01)
        return super()._forward(batch)


def _allowed() -> float:
    """Forwards that may be made since the server began; an empty file allows none."""
    try:
        return int(Path(os.environ[HOLD]).read_text() or 0)
    except FileNotFoundError:
        return float("inf")


if __name__ == "__main__":
    service.Decoder = HeldDecoder  # type: ignore[misc]  # in this process alone
    serve.main()
