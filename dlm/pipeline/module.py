"""The LightningModule that decodes prompts. Works on token ids only: requests come from `dlm.pipeline.data`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lightning import LightningModule

from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions
from dlm.models.backbone import Backbone
from dlm.models.io.loading import Checkpoint

if TYPE_CHECKING:
    from dlm.pipeline.data import PredictBatch


@dataclass(frozen=True)
class DecodingOptions:
    """How prompts are decoded.

    Attributes:
        load: loads the checkpoint onto a device; called in each process once its device is known.
        decoder: decoder limits.
        ready: called with the new decoder.
    """

    load: Callable[[torch.device], Checkpoint]
    decoder: DecoderOptions
    ready: Callable[[Decoder], None] | None = None


class DiffusionLM(LightningModule):
    """A diffusion language model for decoding.

    Args:
        options: decoding options, and how to load the weights.
    """

    def __init__(self, options: DecodingOptions) -> None:
        super().__init__()
        self.options = options
        self.backbone: Backbone | None = None
        self.decoder: Decoder | None = None

    def configure_model(self) -> None:
        """Load the weights onto this process's device; Lightning may call it twice."""
        if self.decoder is not None:
            return
        options = self.options
        checkpoint = options.load(self.device)
        self.backbone = checkpoint.backbone
        self.decoder = Decoder(checkpoint.backbone, checkpoint.special, options.decoder)
        if options.ready is not None:
            options.ready(self.decoder)
        # Each rank has read the weights itself: without this list DDP would broadcast all of them from rank 0.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in (*self.named_parameters(), *self.named_buffers())]

    def predict_step(self, work: PredictBatch, batch_idx: int) -> int:
        """Decode what this process claims; `work` is its only batch."""
        decoder = self.decoder
        if decoder is None:
            raise RuntimeError("DiffusionLM was not configured")
        for completion in decoder.run(work.requests()):
            work.sink(completion)
        return decoder.stats.num_steps

    def on_predict_end(self) -> None:
        """Release the weights: Lightning would otherwise move them to the host, on all ranks at once."""
        self.decoder = self.backbone = None
