"""Greedy block diffusion, as in SDAR's public `generate`: K/V of previous blocks are cached.

One call prefills the whole blocks of the prompt under a block-causal mask; then each call feeds one block against the
stored K/V and itself, and one more on the block's final tokens stores its own. (LLaDA2's program feeds everything
before the block again at each step, which costs more.) Every call computes logits for all positions fed; only those of
the denoising calls are turned into probabilities, in the logits' dtype.

If a step's quota exceeds the remaining masks, the program overwrites decided positions; this loop does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.bench.reference.model import KeyValues, ReferenceCall, ReferenceNetwork, ReferenceOutcome, new_canvas, quotas


@dataclass(frozen=True)
class SdarSettings:
    """Settings of the program.

    Attributes:
        mask_id: of the model.
        gen_length, block_length: blocks start at multiples of `block_length`; the canvas is rounded up.
        denoising_steps: steps over which a block's positions are divided.
        strategy: `low_confidence_dynamic`, `low_confidence_static` or `sequential`.
        confidence_threshold: for the dynamic one.
        stop_ids: end the answer after the block that holds one.
        blocks: number of blocks to decode, the last of which is not stored; None decodes all.
    """

    mask_id: int
    gen_length: int
    block_length: int
    denoising_steps: int
    strategy: str = "low_confidence_static"
    confidence_threshold: float = 0.9
    stop_ids: tuple[int, ...] = ()
    blocks: int | None = None


@torch.inference_mode()
def generate(model: ReferenceNetwork, prompt_ids: Sequence[int], settings: SdarSettings) -> ReferenceOutcome:
    """Decode one prompt greedily."""
    prompt, size = len(prompt_ids), settings.block_length
    length = -(-(prompt + settings.gen_length) // size) * size
    canvas = new_canvas(model, prompt_ids, length, settings.mask_id)
    calls: list[ReferenceCall] = []
    past: KeyValues | None = None
    whole = prompt // size * size
    if whole:
        block_of = torch.arange(whole, device=model.device) // size
        _, past = model(canvas[:, :whole], mask=block_of.unsqueeze(1) >= block_of)
        calls.append(ReferenceCall(whole, whole, 0))
    starts = range(whole, length, size)[: settings.blocks]
    for start in starts:
        stop = start + size
        inside = canvas[:, start:stop]
        for quota in quotas(size, settings.denoising_steps):
            if not (inside == settings.mask_id).any():
                break
            logits, _ = model(inside, start, past)
            calls.append(ReferenceCall(size, stop, size))
            _reveal(inside[0], logits[0], quota, settings)
        if settings.blocks is not None and start == starts[-1]:
            break
        _, past = model(inside, start, past)
        calls.append(ReferenceCall(size, stop, 0))
        if any((canvas[0, prompt:stop] == end).any() for end in settings.stop_ids):
            break
    return ReferenceOutcome(tuple(canvas[0, prompt:].tolist()), tuple(calls))


def _reveal(tokens: Tensor, logits: Tensor, quota: int, settings: SdarSettings) -> None:
    """Reveal the positions of the block `tokens [block]` that the strategy selects from `logits [block, vocab]`."""
    proposed = logits.argmax(-1)
    probability = F.softmax(logits, dim=-1)
    confidence = probability.gather(-1, proposed.unsqueeze(-1)).squeeze(-1)
    masked = tokens == settings.mask_id
    quota = min(quota, int(masked.sum()))
    sure = masked & (confidence > settings.confidence_threshold)
    if settings.strategy == "sequential":
        chosen = masked.nonzero().squeeze(1)[:quota]
    elif settings.strategy == "low_confidence_dynamic" and int(sure.sum()) >= quota:
        chosen = sure.nonzero().squeeze(1)
    else:
        chosen = torch.where(masked, confidence, -torch.inf).argsort(descending=True, stable=True)[:quota]
    tokens[chosen] = proposed[chosen]
