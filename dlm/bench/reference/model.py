"""The model as the public programs run it: one canvas, separate projections, logits for every position fed.

Queries, keys, values, gate and up are separate matmuls, as in the released modelling code. The head is laid out as in a
checkpoint, `[vocab, hidden]`. Cached keys are kept rotated, the cheaper of the programs' ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.models.architecture import BackboneConfig
from dlm.models.backbone import Backbone, Layer, RMSNorm

KeyValues = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, `[batch, heads, positions, head_dim]`, keys rotated."""


@dataclass(frozen=True)
class ReferenceCall:
    """One model call: positions fed (batch rows x length), keys that each of them attends to, and positions whose
    logits are turned into probabilities."""

    fed: int
    keys: int
    scored: int


@dataclass(frozen=True)
class ReferenceOutcome:
    """The canvas after the prompt, and the calls made for it."""

    canvas_ids: tuple[int, ...]
    calls: tuple[ReferenceCall, ...]


class ReferenceNetwork(Protocol):
    """The model interface that a program needs."""

    @property
    def device(self) -> torch.device:
        """The device for tokens."""

    def __call__(
        self,
        tokens: Tensor,
        start: int = 0,
        past: KeyValues | None = None,
        *,
        overwrite: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeyValues]:
        """Logits `[batch, length, vocab]` of `tokens [batch, length]`, and the keys and values they attended to.

        Args:
            start: position of the first token.
            past: keys and values of other positions.
            overwrite: `past` spans the whole canvas and the new ones replace theirs in it; otherwise they are appended
                to it.
            mask: `[length, keys]` bool, what each token may attend to; None allows all.
        """


def supports(config: BackboneConfig) -> bool:
    """Whether `ReferenceModel` can run it: dense and unshifted, without biases, with whole heads rotated."""
    plain = config.experts is None and config.yarn is None and config.rotary_dim is None
    return plain and not (config.shifted or config.qkv_bias)


class ReferenceModel:
    """A dense LLaDA or SDAR over `[batch, length]`, on views of a backbone's weights.

    Args:
        backbone: provides the weights; its code is not used.

    Attributes:
        head: `[vocab, hidden]`, row-major.
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

    @property
    def device(self) -> torch.device:
        return self.weights.device

    def __call__(
        self,
        tokens: Tensor,
        start: int = 0,
        past: KeyValues | None = None,
        *,
        overwrite: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeyValues]:
        x = self.weights.embedding(tokens)
        present: KeyValues = []
        for index, layer in enumerate(self.weights.layers):
            cached = None if past is None else past[index]
            x, kept = self._layer(cast(Layer, layer), x, start, cached, overwrite, mask)
            present.append(kept)
        return F.linear(_norm(self.weights.final_norm, x), self.head), present

    def _layer(
        self,
        layer: Layer,
        x: Tensor,
        start: int,
        past: tuple[Tensor, Tensor] | None,
        overwrite: bool,
        mask: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        config = self.config
        batch, length, _ = x.shape
        wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        q_proj, k_proj, v_proj = torch.split(layer.qkv.weight, [wide, narrow, narrow])
        gate_proj, up_proj = layer.gate_up.weight.chunk(2)

        normed = _norm(layer.attention_norm, x)
        query = F.linear(normed, q_proj).view(batch, length, config.num_heads, config.head_dim)
        key = F.linear(normed, k_proj).view(batch, length, config.num_kv_heads, config.head_dim)
        value = F.linear(normed, v_proj).view(batch, length, config.num_kv_heads, config.head_dim).transpose(1, 2)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = _norm(layer.query_norm, query), _norm(layer.key_norm, key)
        query, key = self._rotate(query.transpose(1, 2), start), self._rotate(key.transpose(1, 2), start)
        if past is not None and overwrite:
            past[0][:, :, start : start + length] = key
            past[1][:, :, start : start + length] = value
            key, value = past
        elif past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        grouped = config.num_heads != config.num_kv_heads
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)
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


class BlankModel:
    """Computes nothing and proposes token 0 everywhere: a run with it shows which calls a program makes."""

    device = torch.device("cpu")

    def __call__(
        self,
        tokens: Tensor,
        start: int = 0,
        past: KeyValues | None = None,
        *,
        overwrite: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeyValues]:
        return torch.zeros(*tokens.shape, 1), []


def quotas(count: int, steps: int) -> list[int]:
    """`count` positions over `steps`, the earlier steps taking the remainder."""
    each, extra = divmod(count, steps)
    return [each + (step < extra) for step in range(steps)]


def new_canvas(model: ReferenceNetwork, prompt_ids: Sequence[int], length: int, mask_id: int) -> Tensor:
    """`[1, length]` int64: the prompt, then masks."""
    prompt = torch.tensor([list(prompt_ids)], device=model.device)
    return F.pad(prompt, (0, length - prompt.shape[1]), value=mask_id)
