"""The LightningModule that trains a model with the masked-diffusion loss.

Works on token ids only: `dlm.training.masking` provides masked, packed batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning import LightningModule
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from dlm.models.backbone import Backbone
from dlm.training.attention import FreshAttention
from dlm.training.loss import masked_diffusion_loss
from dlm.training.masking import MaskedBatch
from dlm.training.optimizers import OptimizerOptions, build_optimizers, warmup_linear


@dataclass(frozen=True)
class TrainingOptions:
    """How a backbone is trained.

    Attributes:
        optimizer: learning rates and schedule.
        weighting: loss weighting, `uniform` or `inverse`.
        total_steps: step at which the learning rate reaches zero.
        compile: compile the layers with torch.compile (about 1.3 times as fast, half a minute to start).
    """

    optimizer: OptimizerOptions
    weighting: str
    total_steps: int
    compile: bool


class TrainingLM(LightningModule):
    """A diffusion language model in training.

    Args:
        backbone: with float32 parameters; the Trainer handles mixed precision (`precision: bf16-mixed`).
        options: training options.
    """

    def __init__(self, backbone: Backbone, options: TrainingOptions) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone, self.options = backbone, options
        if options.compile:
            for layer in backbone.layers:
                layer.compile(dynamic=True)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        optimizers = build_optimizers(self.backbone, self.options.optimizer)
        warmup = self.options.optimizer.warmup_steps
        schedules = [warmup_linear(optimizer, warmup, self.options.total_steps) for optimizer in optimizers]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]

    def loss(self, batch: MaskedBatch) -> Tensor:
        """The masked-diffusion loss of one batch, a scalar."""
        hidden = self.backbone(batch.token_ids, batch.positions, FreshAttention(batch.segments))
        logits = self.backbone.head(hidden[batch.places])
        return masked_diffusion_loss(logits, batch.targets, batch.mask_ratio, self.options.weighting)

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.manual_backward(loss)
        clip_grad_norm_(self.backbone.parameters(), self.options.optimizer.clip_norm)
        for optimizer in self.optimizers():  # type: ignore[union-attr]  # a list of two
            optimizer.step()
            optimizer.zero_grad()
        for schedule in self.lr_schedulers():  # type: ignore[union-attr]  # one per optimizer
            schedule.step()
        self.log("loss", loss.detach())
        return loss.detach()
