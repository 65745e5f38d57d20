"""A server whose forwards stand still for as long as there is a file: `python -m tests.serving.held_server` takes the
arguments of `python -m dlm.serve`, and the file's path from `HOLD`. For what only a process of its own can show; see
`inside.Held` for the rest."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torch import Tensor

from dlm import serve
from dlm.decoding.decoder import Decoder
from dlm.decoding.packing import Batch
from dlm.serving import service

HOLD = "DLM_TEST_HOLD"


class HeldDecoder(Decoder):
    """Decodes as the real one does, when it may."""

    def _forward(self, batch: Batch) -> Tensor:
        while Path(os.environ[HOLD]).exists():
            time.sleep(0.01)
        return super()._forward(batch)


if __name__ == "__main__":
    service.Decoder = HeldDecoder  # type: ignore[misc]  # in this process alone
    serve.main()
