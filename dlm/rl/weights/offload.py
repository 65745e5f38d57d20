"""Offloads a model's weights to the host, so that a trainer can use the device memory."""

from __future__ import annotations

import torch

from dlm.models.backbone import Backbone


class WeightOffload:
    """Moves one model's weights out of device memory and back, bit for bit.

    On a CPU they are already on the host and are only detached from the model.

    Args:
        backbone: the model; its parameters move, its buffers (tables of a few MiB) stay.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.device = backbone, backbone.device
        self._aside: dict[str, torch.Tensor] = {}

    @property
    def away(self) -> bool:
        """Whether the weights are offloaded."""
        return bool(self._aside)

    @torch.no_grad()
    def leave(self) -> None:
        """Offload the weights; a no-op if they already are."""
        if self.away:
            return
        # Copy everything to the host before releasing the memory of any parameter.
        aside = {name: parameter.data.to("cpu") for name, parameter in self.backbone.named_parameters()}
        for parameter in self.backbone.parameters():
            parameter.data = parameter.data.new_empty(0)
        self._aside = aside
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def come_back(self) -> None:
        """Restore the weights with their original strides; a no-op if the model has them."""
        if not self.away:
            return
        back = {name: values.to(self.device) for name, values in self._aside.items()}
        for name, parameter in self.backbone.named_parameters():
            parameter.data = back[name]
        self._aside = {}
