"""Soft inputs on the device, fed at masked positions by smoothing engines (dInfer, arXiv 2510.08666)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dlm.decoding.canvas import Canvas
from dlm.decoding.packing import Batch
from dlm.models.backbone import Backbone
from dlm.models.devices import upload


def embed(backbone: Backbone, batch: Batch, token_ids: Tensor) -> Tensor | None:
    """Inputs `[num_rows, hidden]` of a batch with a smoothed canvas; None if there is none.

    Args:
        token_ids: `[num_rows]` int64 on the device.
    """
    smoothed = [
        (entry, segment.row)
        for entry, segment in zip(batch.entries, batch.segments, strict=True)
        if entry.canvas.request.engine.smoothing is not None
    ]
    if not smoothed:
        return None
    inputs: Tensor = backbone.embedding(token_ids)
    for entry, row in smoothed:
        kept = entry.canvas.tensors.get("inputs")
        if kept is not None:
            inputs[row : row + entry.rows] = kept[entry.window.start : entry.window.stop]
    return inputs


def weight(canvas: Canvas) -> float:
    """w of the canvas's next forward; 0 if it is not smoothed."""
    smoothing = canvas.request.engine.smoothing
    return smoothing.weight(canvas.reference.forwards) if smoothing is not None else 0.0


def remember(canvas: Canvas, backbone: Backbone, share: float) -> None:
    """After a forward and its reveals, store E[x] where x is decided, and E[mask] + share (softmax(logits) E) where
    logits were computed and the position is still masked."""
    if canvas.request.engine.smoothing is None:
        return
    device, embedding = backbone.device, backbone.embedding
    tokens = upload(canvas.tokens, device)
    inputs: Tensor = embedding(tokens)
    kept = canvas.tensors.get("inputs")
    undecided = (tokens == canvas.mask_id).unsqueeze(1)
    if kept is not None:
        inputs = torch.where(undecided, kept, inputs)
    positions, expected = canvas.tensors.pop("expected")
    undone = np.flatnonzero(canvas.tokens[positions] == canvas.mask_id)
    still, rows = upload(positions[undone], device), upload(undone, device)
    inputs[still] = embedding.weight[canvas.mask_id] + share * expected[rows]
    canvas.tensors["inputs"] = inputs
