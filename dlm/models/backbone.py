"""One packed transformer for every supported family.

It sees a 1-D batch of tokens, the windows of all canvases laid end to end, and knows nothing of requests, caches or
sampling: which rows attend to which keys is the business of the `Attention` object that the caller passes in.

Linear layers see `[rows, hidden]`, where rows is the number of tokens rounded up to a multiple of `ROW_TILE`: on a CPU
the result of a row is then the same bits whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROW_TILE = 4
"""Rows of every matmul batch are rounded up to a multiple of this."""


class Attention(Protocol):
    """How the rows of one packed batch attend; made anew for each forward."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend.

        Args:
            layer: index of the layer, from 0.
            query: `[rows, heads, head_dim]`, rotated.
            key: `[rows, kv_heads, head_dim]`, rotated.
            value: `[rows, kv_heads, head_dim]`.

        Returns:
            `[rows, heads, head_dim]`; rows behind the last token are unspecified but finite.
        """


@dataclass(frozen=True)
class BackboneConfig:
    """The architecture, read from a checkpoint's config by its family."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tie_embeddings: bool = False
    full_precision_rope: bool = True

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the arena holds for one token: keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


class RMSNorm(nn.Module):
    """Root-mean-square norm in at least float32, cast back, then scaled (arXiv 1910.07467, as LLaDA applies it)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class Rotary(nn.Module):
    """Half-split rotary position embedding (arXiv 2104.09864), with tables in float32 as the released programs have."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, theta: float, max_positions: int) -> None:
        super().__init__()
        self.head_dim, self.theta, self.max_positions = head_dim, theta, max_positions
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.empty(max_positions, head_dim // 2), persistent=False)
        self.reset_tables()

    @torch.no_grad()
    def reset_tables(self) -> None:
        """Fill the tables on the device where they are; to be called after `to_empty`."""
        device = self.cos.device
        exponent = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32) / self.head_dim
        frequency = 1.0 / (self.theta**exponent)
        angle = torch.outer(torch.arange(self.max_positions, device=device, dtype=torch.float32), frequency)
        self.cos.copy_(angle.cos())
        self.sin.copy_(angle.sin())

    def gather(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of `positions [rows]`, each `[rows, 1, head_dim / 2]` in `dtype`."""
        return self.cos[positions].to(dtype).unsqueeze(1), self.sin[positions].to(dtype).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x [rows, heads, head_dim]` by its positions, in the dtype of `cos`, and cast back."""
    low, high = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


class Layer(nn.Module):
    """Pre-norm attention and gated feed-forward, with q/k/v and gate/up each fused into one matmul."""

    def __init__(self, config: BackboneConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = RMSNorm(width, config.rms_norm_eps)
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.attention_out = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.mlp_norm = RMSNorm(width, config.rms_norm_eps)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        rows = x.shape[0]
        qkv = self.qkv(self.attention_norm(x)).view(rows, -1, self.head_dim)
        query, key, value = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        attended = attention(self.index, rotate(query, cos, sin), rotate(key, cos, sin), value)
        x = x + self.attention_out(attended.reshape(rows, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        fed: Tensor = self.down(F.silu(gate) * up)
        return x + fed


class Backbone(nn.Module):
    """Embedding, layers, final norm and LM head.

    `forward` gives hidden states of every row; `head` is applied by the caller to the few rows that need logits. Its
    weight lies in memory as `[hidden, vocab]`, which a CPU multiplies by few rows 1.2 times as fast.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.max_positions)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        else:
            self.lm_head.weight = nn.Parameter(self.lm_head.weight.detach().t().contiguous().t())

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def forward(self, token_ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Hidden states after the final norm.

        Args:
            token_ids: `[tokens]` int64.
            positions: `[tokens]` int64, each token's place in its own canvas.
            attention: which rows attend to which keys.

        Returns:
            `[tokens, hidden]` in the model's dtype.
        """
        tokens = token_ids.shape[0]
        spare = -tokens % ROW_TILE
        if spare:
            token_ids, positions = F.pad(token_ids, (0, spare)), F.pad(positions, (0, spare))
        x = self.embedding(token_ids)
        wide = torch.float32 if self.config.full_precision_rope and x.dtype != torch.float64 else x.dtype
        cos, sin = self.rotary.gather(positions, wide)
        for layer in self.layers:
            x = layer(x, cos, sin, attention)
        hidden: Tensor = self.final_norm(x)
        return hidden[:tokens]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[rows, vocab]` of `hidden [rows, hidden]`, in the model's dtype."""
        rows = hidden.shape[0]
        spare = -rows % ROW_TILE
        if spare:
            hidden = F.pad(hidden, (0, 0, 0, spare))
        logits: Tensor = self.lm_head(hidden)
        return logits[:rows]

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Random weights, equal for equal seeds: normal, std 0.02, residual outputs scaled down by depth."""
        generator = torch.Generator().manual_seed(seed)
        depth_scale = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            std = 0.02 * (depth_scale if name.endswith(("attention_out.weight", "down.weight")) else 1.0)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
