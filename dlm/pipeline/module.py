"""The LightningModule: one model, trained with the masked-diffusion loss, or decoding prompts.

Knows token ids only: batches come masked and packed from `dlm.pipeline.masking`, requests from `dlm.pipeline.data`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions
from dlm.models.arrangement import Arrangement
from dlm.models.backbone import Backbone
from dlm.models.loading import Checkpoint
from dlm.pipeline.fresh_attention import FreshAttention
from dlm.pipeline.loss import masked_diffusion_loss
from dlm.pipeline.masking import MaskedBatch
from dlm.pipeline.optim import OptimizerOptions, build_optimizers, warmup_linear

if TYPE_CHECKING:
    from dlm.pipeline.data import Work


@dataclass(frozen=True)
class TrainingOptions:
    """How a backbone is trained.

    Attributes:
        optimizer: learning rates and schedule.
        weighting: of the loss, `uniform` or `inverse`.
        total_steps: where the learning rate reaches zero.
        compile: compile the layers with torch.compile (about 1.3 times as fast, half a minute to start).
    """

    optimizer: OptimizerOptions
    weighting: str
    total_steps: int
    compile: bool


@dataclass(frozen=True)
class DecodingOptions:
    """How prompts are decoded.

    Attributes:
        load: makes the checkpoint on a device; called in each process once it knows its own.
        decoder: the decoder's limits.
        ready: called with the decoder's arrangement when it is made.
    """

    load: Callable[[torch.device], Checkpoint]
    decoder: DecoderOptions
    ready: Callable[[Arrangement], None] | None = None


class DiffusionLM(LightningModule):
    """A diffusion language model in training or decoding.

    Args:
        backbone: float32 parameters; mixed precision is the Trainer's business (`precision: bf16-mixed`). None where
            `decoding_options` loads it.
        training_options: needed by `fit` only.
        decoding_options: needed by `predict` only.
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        training_options: TrainingOptions | None = None,
        decoding_options: DecodingOptions | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone = backbone
        self.decoder: Decoder | None = None
        self.training_options = training_options
        self.decoding_options = decoding_options
        if backbone is not None and training_options is not None and training_options.compile:
            for layer in backbone.layers:
                layer.compile(dynamic=True)

    def configure_model(self) -> None:
        """Load the weights to this process's own device, when it is to decode; Lightning may call it twice."""
        options = self.decoding_options
        if options is None or self.decoder is not None:
            return
        checkpoint = options.load(self.device)
        self.backbone = checkpoint.backbone
        self.decoder = Decoder(checkpoint.backbone, checkpoint.special, options.decoder)
        if options.ready is not None:
            options.ready(self.decoder.arrangement)
        # Each rank has read the weights itself: without this list DDP sends all of them from rank 0 once more.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in (*self.named_parameters(), *self.named_buffers())]

    def predict_step(self, work: Work, batch_idx: int) -> int:
        """Decode what this process claims; `work` is the only batch that it gets."""
        decoder = self.decoder
        if decoder is None:
            raise RuntimeError("DiffusionLM was made without decoding options")
        for completion in decoder.run(work.requests()):
            work.sink(completion)
        return decoder.stats.num_steps

    def on_predict_end(self) -> None:
        """Let go of the weights: Lightning would move them to the host first, all ranks at once."""
        self.decoder = self.backbone = None

    @property
    def weights(self) -> Backbone:
        """The backbone in training."""
        if self.backbone is None:
            raise RuntimeError("DiffusionLM was made without a backbone")
        return self.backbone

    @property
    def options(self) -> TrainingOptions:
        if self.training_options is None:
            raise RuntimeError("DiffusionLM was made without training options")
        return self.training_options

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        optimizers = build_optimizers(self.weights, self.options.optimizer)
        warmup = self.options.optimizer.warmup_steps
        schedules = [warmup_linear(optimizer, warmup, self.options.total_steps) for optimizer in optimizers]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]

    def loss(self, batch: MaskedBatch) -> Tensor:
        """The masked-diffusion loss of one batch, a scalar."""
        hidden = self.weights(batch.token_ids, batch.positions, FreshAttention(batch.segments))
        logits = self.weights.head(hidden[batch.places])
        return masked_diffusion_loss(logits, batch.targets, batch.mask_ratio, self.options.weighting)

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.manual_backward(loss)
        clip_grad_norm_(self.weights.parameters(), self.options.optimizer.clip_norm)
        for optimizer in self.optimizers():  # type: ignore[union-attr]  # a list: there are two
            optimizer.step()
            optimizer.zero_grad()
        for schedule in self.lr_schedulers():  # type: ignore[union-attr]  # one for each
            schedule.step()
        self.log("loss", loss.detach())
        return loss.detach()
