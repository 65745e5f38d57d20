"""A worker whose decoder sleeps where a model would compute: `python -m tests.serving.sleeping_worker` takes the
arguments of `python -m dlm.serve`. So several workers share two cores as they would share none."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from dlm import serve
from dlm.decoding.decoder import Decoder
from dlm.decoding.packing import Batch
from dlm.serving.engine import service

FORWARD = 0.05
"""Seconds of one forward."""


class SleepingDecoder(Decoder):
    """Decodes as the real one does, with hidden states that nobody computed."""

    def _forward(self, batch: Batch) -> Tensor:
        time.sleep(FORWARD)
        return torch.zeros(batch.num_rows, self.backbone.config.hidden_size)


if __name__ == "__main__":
    service.Decoder = SleepingDecoder  # type: ignore[misc]  # in this process alone
    serve.main()
