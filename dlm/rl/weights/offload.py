"""Where a model's weights are: in its own memory, or set aside on the host, so that a trainer may have the device."""

from __future__ import annotations

import torch

from dlm.models.backbone import Backbone


class WeightOffload:
    """Moves the weights of one model out of the device's memory and back, bit for bit.

    On a CPU they are already on the host: they only leave the model.

    Args:
        backbone: whose parameters; buffers (tables of a few MiB) stay.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.device = backbone, backbone.device
        self._aside: dict[str, torch.Tensor] = {}

    @property
    def away(self) -> bool:
        """Whether the model has no weights now."""
        return bool(self._aside)

    @torch.no_grad()
    def leave(self) -> None:
        """Set the weights aside; nothing is done when they are."""
        if self.away:
            return
        # Everything is on the host before the first parameter lets go of its memory.
        aside = {name: parameter.data.to("cpu") for name, parameter in self.backbone.named_parameters()}
        for parameter in self.backbone.parameters():
            parameter.data = parameter.data.new_empty(0)
        self._aside = aside
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def come_back(self) -> None:
        """Give the model its weights again, with the strides that they had; nothing is done when it has them."""
        if not self.away:
            return
        back = {name: values.to(self.device) for name, values in self._aside.items()}
        for name, parameter in self.backbone.named_parameters():
            parameter.data = back[name]
        self._aside = {}
