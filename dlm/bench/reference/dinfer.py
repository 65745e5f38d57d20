"""Greedy decoding with a vicinity cache, as in dInfer's program.

It checks whether a block is finished only after a number of iterations, and makes an ordinary call right after each one
that fills the cache: calls on a finished block write nothing but are still made. Only the block's logits become
probabilities, in float32, the cheaper of its two settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.bench.reference.model import KeyValues, ReferenceCall, ReferenceNetwork, ReferenceOutcome, new_canvas, quotas


@dataclass(frozen=True)
class DInferSettings:
    """Settings of the program; the defaults are those it serves with.

    Attributes:
        mask_id: of the model.
        gen_length, block_length: of the canvas; the last block may be short.
        steps_per_block: the schedule of each block without a threshold.
        threshold: reveal by confidence.
        prefix_look, after_look: positions around the block that are recomputed with it.
        warmup_steps: the first calls, which feed the whole canvas and cache nothing.
        maximum_unroll, expected_tpf: a block is checked after max(1, min(masks // expected_tpf, maximum_unroll))
            iterations.
        eos_id: ends the answer after the block that holds it; None for none.
        blocks: number of blocks to decode; None decodes all.
    """

    mask_id: int
    gen_length: int
    block_length: int
    steps_per_block: int = 1
    threshold: float | None = None
    prefix_look: int = 16
    after_look: int = 16
    warmup_steps: int = 4
    maximum_unroll: int = 4
    expected_tpf: int = 8
    eos_id: int | None = None
    blocks: int | None = None


class _Run:
    """State of one prompt."""

    def __init__(self, model: ReferenceNetwork, prompt_ids: Sequence[int], settings: DInferSettings) -> None:
        self.model, self.settings = model, settings
        self.length = len(prompt_ids) + settings.gen_length
        self.canvas = new_canvas(model, prompt_ids, self.length, settings.mask_id)
        self.past: KeyValues | None = None
        self.tested = 0
        self.calls: list[ReferenceCall] = []
        self.schedule: list[int] = []

    def call(self, first: int, last: int, start: int, stop: int, *, cached: bool) -> KeyValues:
        """Feed `[first, last)` and reveal in the block `[start, stop)`."""
        past = self.past if cached else None
        logits, present = self.model(self.canvas[:, first:last], first, past, overwrite=cached)
        self.calls.append(ReferenceCall(last - first, self.length, stop - start))
        quota = self.schedule.pop(0) if self.schedule else 0
        _reveal(self.canvas[0, start:stop], logits[0, start - first : stop - first], quota, self.settings)
        return present

    def iterate(self, block: int, start: int, stop: int) -> None:
        """One iteration: a call, or two if the cache is filled first."""
        settings = self.settings
        if len(self.calls) < settings.warmup_steps:
            self.call(0, self.length, start, stop, cached=False)
            return
        stale = self.past is None or block != self.tested
        if self.past is not None:
            self.tested = block
        if stale:
            self.past = self.call(0, self.length, start, stop, cached=False)
        first, last = max(0, start - settings.prefix_look), min(self.length, stop + settings.after_look)
        self.call(first, last, start, stop, cached=True)


@torch.inference_mode()
def generate(model: ReferenceNetwork, prompt_ids: Sequence[int], settings: DInferSettings) -> ReferenceOutcome:
    """Decode one prompt greedily."""
    run, size, prompt = _Run(model, prompt_ids, settings), settings.block_length, len(prompt_ids)
    for block, start in list(enumerate(range(prompt, run.length, size)))[: settings.blocks]:
        stop = min(start + size, run.length)
        inside = run.canvas[0, start:stop]
        if settings.threshold is None:
            run.schedule = quotas(int((inside == settings.mask_id).sum()), settings.steps_per_block)
        while masks := int((inside == settings.mask_id).sum()):
            for _ in range(max(1, min(masks // settings.expected_tpf, settings.maximum_unroll))):
                run.iterate(block, start, stop)
        if settings.eos_id is not None and (inside == settings.eos_id).any():
            run.canvas[:, stop:] = settings.eos_id
            break
    return ReferenceOutcome(tuple(run.canvas[0, prompt:].tolist()), tuple(run.calls))


def _reveal(tokens: Tensor, logits: Tensor, quota: int, settings: DInferSettings) -> None:
    """Reveal positions of the block `tokens [block]` from `logits [block, vocab]`."""
    proposed = logits.argmax(-1)
    probability = F.softmax(logits.float(), dim=-1)
    confidence = probability.gather(-1, proposed.unsqueeze(-1)).squeeze(-1)
    masked = tokens == settings.mask_id
    if settings.threshold is None:
        ranked = torch.where(masked, confidence, -torch.inf).argsort(descending=True, stable=True)
        chosen = ranked[: min(quota, int(masked.sum()))]
        tokens[chosen] = proposed[chosen]
        return
    candidates = masked & (proposed != settings.mask_id)
    confidence = torch.where(candidates, confidence, -torch.inf)
    sure = candidates & (confidence >= min(settings.threshold, float(confidence.max()) - 1e-5))
    tokens[sure] = proposed[sure]
