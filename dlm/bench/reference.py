"""The loop that the decoder is compared with: greedy decoding as the public `generate` programs of LLaDA and Fast-dLLM
do it, in plain PyTorch.

One prompt at a time. A forward feeds the whole canvas, or, where K/V are cached, the canvas once a block and then the
part that the cache does not cover. The LM head gives logits for every position fed, and a float64 softmax over all of
them gives the confidences. Queries, keys, values, gate and up are separate matmuls, as in the released modelling code.
The head lies in memory as in a checkpoint, `[vocab, hidden]`. Where the programs differ in cost the cheaper way is
taken: cached keys are kept rotated, and confidences are gathered from one softmax.

It passes the golden vectors (`tests/bench/test_reference.py`), so it decodes what the programs decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.models.backbone import Backbone, Layer, RMSNorm

KeyValues = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, `[batch, heads, positions, head_dim]`, keys rotated."""


class ReferenceModel:
    """A dense LLaDA over `[batch, length]`, on views of a backbone's weights.

    Args:
        backbone: whose weights are used; its code is not.

    Attributes:
        head: `[vocab, hidden]`, row by row in memory.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.weights = backbone
        self.head = backbone.lm_head.weight.contiguous()
        self.config = backbone.config
        half = torch.arange(0, self.config.head_dim, 2, device=backbone.device, dtype=torch.float32)
        frequency = 1.0 / (self.config.rope_theta ** (half / self.config.head_dim))
        angle = torch.outer(torch.arange(self.config.max_positions, device=backbone.device).float(), frequency)
        angle = torch.cat((angle, angle), dim=-1)
        self.cos, self.sin = angle.cos(), angle.sin()

    def __call__(
        self, tokens: Tensor, start: int = 0, past: KeyValues | None = None, *, overwrite: bool = False
    ) -> tuple[Tensor, KeyValues]:
        """Logits `[batch, length, vocab]` of `tokens [batch, length]`, and the keys and values they attended to.

        Args:
            start: position of the first token.
            past: keys and values of other positions.
            overwrite: `past` spans the whole canvas and the new ones take their places in it; otherwise they are
                appended to it.
        """
        x = self.weights.embedding(tokens)
        present: KeyValues = []
        for index, layer in enumerate(self.weights.layers):
            cached = None if past is None else past[index]
            x, kept = self._layer(cast(Layer, layer), x, start, cached, overwrite)
            present.append(kept)
        return F.linear(_norm(self.weights.final_norm, x), self.head), present

    def _layer(
        self, layer: Layer, x: Tensor, start: int, past: tuple[Tensor, Tensor] | None, overwrite: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        config = self.config
        batch, length, _ = x.shape
        wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        q_proj, k_proj, v_proj = torch.split(layer.qkv.weight, [wide, narrow, narrow])
        gate_proj, up_proj = layer.gate_up.weight.chunk(2)

        normed = _norm(layer.attention_norm, x)
        query = F.linear(normed, q_proj).view(batch, length, config.num_heads, config.head_dim).transpose(1, 2)
        key = F.linear(normed, k_proj).view(batch, length, config.num_kv_heads, config.head_dim).transpose(1, 2)
        value = F.linear(normed, v_proj).view(batch, length, config.num_kv_heads, config.head_dim).transpose(1, 2)
        query, key = self._rotate(query, start), self._rotate(key, start)
        if past is not None and overwrite:
            past[0][:, :, start : start + length] = key
            past[1][:, :, start : start + length] = value
            key, value = past
        elif past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        grouped = config.num_heads != config.num_kv_heads
        attended = F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped)
        x = x + F.linear(attended.transpose(1, 2).reshape(batch, length, wide), layer.attention_out.weight)

        normed = _norm(layer.mlp_norm, x)
        x = x + F.linear(F.silu(F.linear(normed, gate_proj)) * F.linear(normed, up_proj), layer.down.weight)
        return x, (key, value)

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        """Rotary position embedding in float32, `x [batch, heads, length, head_dim]`."""
        wide = x.float()
        cos, sin = (table[start : start + x.shape[2]] for table in (self.cos, self.sin))
        first, second = wide.chunk(2, dim=-1)
        return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * wide.to(x.dtype)


@dataclass(frozen=True)
class Settings:
    """What the programs take.

    Attributes:
        mask_id: of the model.
        gen_length, block_length, steps: canvas and schedule; both divisions must be exact.
        cache: `none`, `prefix` or `dual`.
        threshold, factor: reveal by confidence; otherwise by the schedule.
        run_all_steps: LLaDA's program goes on when a block is full, Fast-dLLM's does not.
        cfg_scale: guidance; without a cache only.
        banned, deferred: ids whose logit becomes -inf before, and after, the proposal is made.
        blocks: decode so many blocks; None decodes all.
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


@dataclass(frozen=True)
class Outcome:
    """The canvas behind the prompt, and for each forward the positions fed (batch rows x length)."""

    canvas_ids: tuple[int, ...]
    forward_tokens: tuple[int, ...]


@torch.inference_mode()
def generate(model: ReferenceModel, prompt_ids: Sequence[int], settings: Settings) -> Outcome:
    """Decode one prompt greedily."""
    prompt = torch.tensor([list(prompt_ids)], device=model.weights.device)
    canvas = F.pad(prompt, (0, settings.gen_length), value=settings.mask_id)
    fed: list[int] = []
    blocks = settings.gen_length // settings.block_length
    for block in range(blocks if settings.blocks is None else settings.blocks):
        start = prompt.shape[1] + block * settings.block_length
        stop = start + settings.block_length
        quotas = _quotas(int((canvas[0, start:stop] == settings.mask_id).sum()), settings.steps // blocks)
        past: KeyValues | None = None
        step = 0
        while step < len(quotas) if settings.run_all_steps else (canvas[0, start:stop] == settings.mask_id).any():
            first, last = 0, canvas.shape[1]
            if past is not None and settings.cache != "none":
                first, last = start, stop if settings.cache == "dual" else last
                logits, present = model(canvas[:, first:last], first, past, overwrite=settings.cache == "dual")
                past = present if settings.cache == "dual" else past
                fed.append(last - first)
            else:
                logits, past = _whole(model, canvas, prompt.shape[1], settings, fed)
                if settings.cache == "prefix":
                    past = [(key[:, :, :start], value[:, :, :start]) for key, value in past]
            quota = quotas[step] if step < len(quotas) else 0
            _reveal(canvas[0, first:last], logits[0], stop - first, quota, settings)
            step += 1
    return Outcome(tuple(canvas[0, prompt.shape[1] :].tolist()), tuple(fed))


def _whole(
    model: ReferenceModel, canvas: Tensor, prompt_length: int, settings: Settings, fed: list[int]
) -> tuple[Tensor, KeyValues]:
    """A forward of the whole canvas, with its unconditional twin when guided."""
    if not settings.cfg_scale:
        fed.append(canvas.numel())
        return model(canvas)
    twin = canvas.clone()
    twin[:, :prompt_length] = settings.mask_id
    fed.append(2 * canvas.numel())
    both, present = model(torch.cat((canvas, twin)))
    conditional, unconditional = both.chunk(2)
    return unconditional + (settings.cfg_scale + 1) * (conditional - unconditional), present


def _quotas(masks: int, steps: int) -> list[int]:
    each, extra = divmod(masks, steps)
    return [each + (step < extra) for step in range(steps)]


def _reveal(tokens: Tensor, logits: Tensor, stop: int, quota: int, settings: Settings) -> None:
    """Write into `tokens [length]` what `logits [length, vocab]` are sure enough of, before `stop`."""
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
    """How many of the candidates, whose confidences come in descending order, are revealed."""
    count = len(ordered)
    bar = 1.0 - factor / (torch.arange(count, device=ordered.device) + 2.0)
    failed = ordered < bar
    failed[0] = False
    first = int(failed.int().argmax()) if failed.any() else count
    return count if first == count - 1 else first
