"""The optimizer of a policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class PolicyOptimizerOptions:
    """AdamW (betas 0.9 and 0.99, as in d1) with a linear warmup, then a constant rate.

    Attributes:
        lr: learning rate.
        weight_decay: AdamW's weight decay.
        warmup_steps: updates until `lr` is reached.
        clip_norm: maximum gradient norm.
    """

    lr: float = 1e-6
    weight_decay: float = 0.0
    warmup_steps: int = 0
    clip_norm: float = 1.0

    def faults(self) -> list[str]:
        """Invalid values, each with its key and remedy."""
        found = [
            f"optimizer.{name}={value}: must be above 0"
            for name, value in (("lr", self.lr), ("clip_norm", self.clip_norm))
            if not value > 0
        ]
        if not self.weight_decay >= 0:
            found.append(f"optimizer.weight_decay={self.weight_decay}: must be at least 0")
        if self.warmup_steps < 0:
            found.append(f"optimizer.warmup_steps={self.warmup_steps}: must be at least 0")
        return found

    def build(self, parameters: Iterable[Parameter]) -> tuple[Optimizer, LambdaLR]:
        """The optimizer and its schedule."""
        optimizer = AdamW(parameters, lr=self.lr, betas=BETAS, weight_decay=self.weight_decay)
        return optimizer, LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / max(1, self.warmup_steps)))
