"""The model in training: its weights or an adapter, its rollouts, and the initial model as the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlm.decoding.options import DecoderOptions
from dlm.likelihood import Likelihood
from dlm.models.io.loading import Checkpoint, save_checkpoint
from dlm.models.lora.training import Lora, LoraOptions
from dlm.rl.rollouts import Rollouts
from dlm.text import TextCodec


class PolicyModule(nn.Module):
    """The trained parameters, and the rollouts that decode with them.

    Args:
        load: loads the checkpoint to train onto a device; called again for the reference if that is a separate model.
        load_decoder: loads a separate copy for decoding; None decodes with the trained weights themselves.
        device: device for all of them.
        lora: the adapter to train; rank 0 trains all weights.
        seed: seed of the adapter's initialization.
        codec: the tokenizer.
        options: decoder limits.
        score_tokens: rows in one scoring forward.
        compared: whether divergences from the initial model are needed.

    Attributes:
        trained: the module whose parameters are trained.
        rollouts: decodes with the weights of its last `sync`, and scores with the trained weights.
    """

    def __init__(
        self,
        load: Callable[[torch.device], Checkpoint],
        load_decoder: Callable[[torch.device], Checkpoint] | None,
        device: torch.device,
        *,
        lora: LoraOptions,
        seed: int,
        codec: TextCodec,
        options: DecoderOptions,
        score_tokens: int,
        compared: bool,
    ) -> None:
        super().__init__()
        self.checkpoint, self.compared = load(device), compared
        self.backbone = self.checkpoint.backbone.train().requires_grad_(not lora.rank)
        self.lora = Lora(self.backbone, self.checkpoint.family, lora, seed) if lora.rank else None
        self.rollouts = Rollouts(
            self.checkpoint if load_decoder is None else load_decoder(device),
            trainer=self.backbone,
            codec=codec,
            options=options,
            score_tokens=score_tokens,
        )
        self._reference: Likelihood | None = None
        if compared and self.lora is None:
            first = load(device)
            self._reference = Likelihood(first.backbone, first.special, max_tokens=score_tokens)

    @property
    def trained(self) -> nn.Module:
        return self.backbone if self.lora is None else self.lora

    @contextmanager
    def at_the_start(self) -> Iterator[Likelihood | None]:
        """The model as it was before training; None if no divergence from it is needed."""
        if self.lora is None or not self.compared:
            yield self._reference
            return
        with self.lora.disabled():
            yield self.rollouts.likelihood

    def save(self, folder: Path, tokenizer: Any, base: str | None) -> None:
        """Save into a new folder: the adapter for the model `base`, or the model in its family's format."""
        if self.lora is not None:
            self.lora.save(folder, base)
            return
        save_checkpoint(self.backbone, self.checkpoint.special, folder, family=self.checkpoint.family)
        tokenizer.save_pretrained(folder)
