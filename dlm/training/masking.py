"""Turns clean canvases into packed training batches with masked tokens.

A canvas is a prompt, its answer, `<|eot_id|>`, and `<|endoftext|>` up to the generation length, as in LLaDA's
fine-tuning (arXiv 2502.09992, appendix B). It is masked in one of two ways:

* anywhere in the answer region, each token with probability `t`, as in the derivation of the loss;
* as a semi-autoregressive decoder sees it: blocks to the left clean, the active block partly masked, everything to its
  right masked. `t` is drawn with density `1 / (2 sqrt(1 - t))`, because a decoder that reveals many tokens per step
  sees mostly masked blocks. Only the active block's tokens are targets: no decoder reveals those to its right yet.

Works on token ids only. Canvases are not padded beyond their generation length; lengths may differ within a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlm.models.attention.segments import Segment


@dataclass(frozen=True)
class TrainingCanvas:
    """One training example: `token_ids` with the answer region at `[prompt_length, len(token_ids))`.

    `answer_length` counts the answer and its end token, not the padding after it.
    """

    token_ids: Sequence[int]
    prompt_length: int
    answer_length: int


@dataclass(frozen=True)
class MaskedBatch:
    """Packed, masked canvases.

    Attributes:
        token_ids: `[tokens]` int64, with mask tokens.
        positions: `[tokens]` int64, each token's position in its canvas.
        segments: one per canvas; canvases of equal length are adjacent.
        places: `[masked]` int64, rows of the target tokens.
        targets: `[masked]` int64, the target tokens.
        mask_ratio: `[masked]` float32, the `t` of each target's canvas.
    """

    token_ids: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    places: Tensor
    targets: Tensor
    mask_ratio: Tensor

    def to(self, device: torch.device) -> MaskedBatch:
        """The same batch on `device`."""
        return MaskedBatch(
            self.token_ids.to(device),
            self.positions.to(device),
            self.segments,
            self.places.to(device),
            self.targets.to(device),
            self.mask_ratio.to(device),
        )


class Masker:
    """Draws masks.

    Args:
        mask_id: the mask token.
        block_lengths: block lengths of the semi-autoregressive states, drawn uniformly.
        anywhere_share: fraction of canvases masked anywhere.
    """

    def __init__(self, mask_id: int, block_lengths: Sequence[int], anywhere_share: float) -> None:
        self.mask_id = mask_id
        self.block_lengths = list(block_lengths)
        self.anywhere_share = anywhere_share

    def batch(self, canvases: Sequence[TrainingCanvas], rng: np.random.Generator) -> MaskedBatch:
        """Mask and pack `canvases`."""
        ordered = sorted(canvases, key=lambda canvas: len(canvas.token_ids))
        clean = np.concatenate([np.asarray(canvas.token_ids, dtype=np.int64) for canvas in ordered])
        noisy, asked = clean.copy(), np.zeros(len(clean), dtype=bool)
        ratios = np.zeros(len(clean), dtype=np.float32)
        segments, row = [], 0
        for canvas in ordered:
            rows = len(canvas.token_ids)
            hidden, wanted, ratio = self._draw(rows - canvas.prompt_length, canvas.answer_length, rng)
            region = slice(row + canvas.prompt_length, row + rows)
            noisy[region][hidden] = self.mask_id
            asked[region] = wanted
            ratios[region] = ratio
            segments.append(Segment(row=row, rows=rows, num_keys=rows))
            row += rows
        places = np.flatnonzero(asked)
        return MaskedBatch(
            token_ids=torch.from_numpy(noisy),
            positions=torch.from_numpy(np.concatenate([np.arange(segment.rows) for segment in segments])),
            segments=tuple(segments),
            places=torch.from_numpy(places),
            targets=torch.from_numpy(clean[places]),
            mask_ratio=torch.from_numpy(ratios[places]),
        )

    def _draw(self, length: int, answer_length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        """For a region of `length` tokens: which are masked, which are targets, and `t`."""
        if rng.random() < self.anywhere_share:
            ratio = float(1.0 - rng.random())
            hidden = rng.random(length) < ratio
            hidden[rng.integers(length)] = True
            return hidden, hidden, ratio
        ratio = float(1.0 - rng.random() ** 2)
        block_length = int(rng.choice(self.block_lengths))
        start = block_length * int(rng.integers((answer_length - 1) // block_length + 1))
        stop = min(start + block_length, length)
        wanted = np.zeros(length, dtype=bool)
        wanted[start:stop] = rng.random(stop - start) < ratio
        wanted[start + int(rng.integers(stop - start))] = True
        hidden = wanted.copy()
        hidden[stop:] = True
        return hidden, wanted, ratio
