"""Optimizers and the learning-rate schedule of training.

Matrices inside the layers are updated by Muon (`torch.optim.Muon`: orthogonalised momentum), embeddings, LM head and
norms by AdamW: on a small budget this learns what AdamW alone does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import optim
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dlm.errors import ConfigError
from dlm.models.backbone import Backbone


@dataclass(frozen=True)
class OptimizerOptions:
    """Learning rates of the two optimizers and their shared schedule.

    Attributes:
        muon_lr: for the matrices inside the layers.
        adamw_lr: for embeddings, LM head and norms.
        weight_decay: for the matrices inside the layers.
        warmup_steps: steps of linear warmup.
        clip_norm: maximum gradient norm.
    """

    muon_lr: float
    adamw_lr: float
    weight_decay: float
    warmup_steps: int
    clip_norm: float


def build_optimizers(backbone: Backbone, options: OptimizerOptions) -> list[Optimizer]:
    """Muon for the two-dimensional parameters of the layers, AdamW for the rest.

    Raises:
        ConfigError: the installed torch has no Muon (added in 2.9).
    """
    if not hasattr(optim, "Muon"):
        raise ConfigError("training needs torch.optim.Muon: install torch 2.9 or later")
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    inner = [
        parameter for parameter in backbone.layers.parameters() if parameter.requires_grad and parameter.dim() == 2
    ]
    chosen = {id(parameter) for parameter in inner}
    outer = [parameter for parameter in parameters if id(parameter) not in chosen]
    return [
        optim.Muon(inner, lr=options.muon_lr, weight_decay=options.weight_decay),
        AdamW(outer, lr=options.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def warmup_linear(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear warmup, then linear decay to zero at `total_steps`."""

    def scale(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return LambdaLR(optimizer, scale)
