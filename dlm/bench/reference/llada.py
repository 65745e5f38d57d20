"""Greedy decoding, as in the public `generate` programs of LLaDA and Fast-dLLM.

A call feeds the whole canvas or, with cached K/V, the canvas once per block and then the part that the cache does not
cover. A float64 softmax over the logits of every position fed gives the confidences. Where the programs differ in cost,
the cheaper way is used: confidences are gathered from one softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.bench.reference.model import KeyValues, ReferenceCall, ReferenceNetwork, ReferenceOutcome, new_canvas, quotas


@dataclass(frozen=True)
class LLaDASettings:
    """Settings of the programs.

    Attributes:
        mask_id: of the model.
        gen_length, block_length, steps: canvas and schedule; both divisions must be exact.
        cache: `none`, `prefix` or `dual`.
        threshold, factor: reveal by confidence; otherwise by the schedule.
        run_all_steps: continue when a block is full, as LLaDA's program does and Fast-dLLM's does not.
        cfg_scale: guidance; without a cache only.
        banned, deferred: ids whose logit becomes -inf before, and after, the proposal is made.
        blocks: number of blocks to decode; None decodes all.
    """

    mask_id: int
    gen_length: int
    block_length: int
    steps: int
    cache: str = "none"
    threshold: float | None = None
    factor: float | None = None
    run_all_steps: bool = False
    cfg_scale: float = 0.0
    banned: tuple[int, ...] = ()
    deferred: tuple[int, ...] = ()
    blocks: int | None = None


@torch.inference_mode()
def generate(model: ReferenceNetwork, prompt_ids: Sequence[int], settings: LLaDASettings) -> ReferenceOutcome:
    """Decode one prompt greedily."""
    prompt_length = len(prompt_ids)
    canvas = new_canvas(model, prompt_ids, prompt_length + settings.gen_length, settings.mask_id)
    calls: list[ReferenceCall] = []
    blocks = settings.gen_length // settings.block_length
    for block in range(blocks if settings.blocks is None else settings.blocks):
        start = prompt_length + block * settings.block_length
        stop = start + settings.block_length
        schedule = quotas(int((canvas[0, start:stop] == settings.mask_id).sum()), settings.steps // blocks)
        past: KeyValues | None = None
        step = 0
        while step < len(schedule) if settings.run_all_steps else (canvas[0, start:stop] == settings.mask_id).any():
            first, last = 0, canvas.shape[1]
            if past is not None and settings.cache != "none":
                first, last = start, stop if settings.cache == "dual" else last
                logits, present = model(canvas[:, first:last], first, past, overwrite=settings.cache == "dual")
                past = present if settings.cache == "dual" else past
                calls.append(ReferenceCall(last - first, canvas.shape[1], last - first))
            else:
                logits, past = _whole(model, canvas, prompt_length, settings, calls)
                if settings.cache == "prefix":
                    past = [(key[:, :, :start], value[:, :, :start]) for key, value in past]
            quota = schedule[step] if step < len(schedule) else 0
            _reveal(canvas[0, first:last], logits[0], stop - first, quota, settings)
            step += 1
    return ReferenceOutcome(tuple(canvas[0, prompt_length:].tolist()), tuple(calls))


def _whole(
    model: ReferenceNetwork, canvas: Tensor, prompt_length: int, settings: LLaDASettings, calls: list[ReferenceCall]
) -> tuple[Tensor, KeyValues]:
    """A forward of the whole canvas, with its unconditional copy if guided."""
    length = canvas.shape[1]
    if not settings.cfg_scale:
        calls.append(ReferenceCall(length, length, length))
        return model(canvas)
    uncond = canvas.clone()
    uncond[:, :prompt_length] = settings.mask_id
    calls.append(ReferenceCall(2 * length, length, length))
    both, present = model(torch.cat((canvas, uncond)))
    conditional, unconditional = both.chunk(2)
    return unconditional + (settings.cfg_scale + 1) * (conditional - unconditional), present


def _reveal(tokens: Tensor, logits: Tensor, stop: int, quota: int, settings: LLaDASettings) -> None:
    """Reveal positions of `tokens [length]` before `stop` from `logits [length, vocab]`."""
    if settings.banned:
        logits[:, list(settings.banned)] = -torch.inf
    proposed = logits.argmax(-1)
    if settings.deferred:
        logits[:, list(settings.deferred)] = -torch.inf
    probability = F.softmax(logits.to(torch.float64), dim=-1)
    confidence = probability.gather(-1, proposed.unsqueeze(-1)).squeeze(-1)
    masked = tokens == settings.mask_id
    masked[stop:] = False
    confidence = torch.where(masked, confidence, -torch.inf)
    if settings.threshold is not None:
        ordered, ranked = _ranking(confidence, masked)
        chosen = ranked[: max(1, int((ordered >= settings.threshold).sum()))]
    elif settings.factor is not None:
        ordered, ranked = _ranking(confidence, masked)
        chosen = ranked[: _sure_by_factor(ordered, settings.factor)]
    else:
        chosen = confidence.topk(quota).indices
    tokens[chosen] = proposed[chosen]


def _ranking(confidence: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates' confidences in descending order, and the positions in that order."""
    ordered, ranked = confidence.sort(descending=True, stable=True)
    return ordered[: int(masked.sum())], ranked


def _sure_by_factor(ordered: Tensor, factor: float) -> int:
    """How many candidates are revealed, given their confidences in descending order."""
    count = len(ordered)
    bar = 1.0 - factor / (torch.arange(count, device=ordered.device) + 2.0)
    failed = ordered < bar
    failed[0] = False
    first = int(failed.int().argmax()) if failed.any() else count
    return count if first == count - 1 else first
