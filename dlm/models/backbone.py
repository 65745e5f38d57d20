"""One packed transformer for every supported family.

It sees a 1-D batch of tokens, the windows of all canvases laid end to end, and knows nothing of requests, caches or
sampling: which rows attend to which keys is the business of the `Attention` object that the caller passes in.

Layers see `[rows, hidden]`, where rows is the number of tokens rounded up to a multiple of `ROW_TILE`, and compute with
an arithmetic (`dlm.models.arithmetic`): on a CPU a row's result then has the same bits whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlm.models.architecture import ROW_TILE, BackboneConfig
from dlm.models.arithmetic import PROVED, Arithmetic, Linear
from dlm.models.experts import Experts
from dlm.models.rotary import Rotary, rotate

__all__ = ["ROW_TILE", "Attention", "Backbone", "BackboneConfig", "Layer", "RMSNorm", "Rotary", "rotate"]


RESIDUAL_OUTPUTS = ("attention_out.weight", "down.weight", "experts.down")


CACHE_TILE = 512
"""Rows of a layer that a CPU computes at once where nothing else decides (12 % faster on 3,766 rows, the same bits)."""


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


class Layer(nn.Module):
    """Pre-norm attention and gated feed-forward, with q/k/v and gate/up each fused into one matmul.

    The feed-forward is `gate_up` and `down`, or `experts` in a mixture-of-experts layer.

    Attributes:
        arithmetic: of its activations; its projections have their own.
        total: sums what the layer's two halves give over the processes that share the model; None where one has all.
        drafter: what an adapter adds to a projection, by its name, in rows that draft (`dlm.models.lora.drafter`).
    """

    arithmetic: Arithmetic = PROVED

    def __init__(self, config: BackboneConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.total: Callable[[Tensor], Tensor] | None = None
        self.drafter = nn.ModuleDict()
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = RMSNorm(width, config.rms_norm_eps)
        self.qkv = Linear(width, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=config.qkv_bias)
        self.query_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.attention_out = Linear(self.heads * self.head_dim, width, bias=False)
        self.mlp_norm = RMSNorm(width, config.rms_norm_eps)
        self.experts: Experts | None = None
        if config.experts is not None and config.has_experts(index):
            self.experts = Experts(width, config.experts)
        else:
            self.gate_up = Linear(width, 2 * inner, bias=False)
            self.down = Linear(inner, width, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        attention: Attention,
        query_scale: Tensor | None = None,
        drafts: Tensor | None = None,
    ) -> Tensor:
        tiles = self._tiles(x)
        if len(tiles) == 1:
            return self._finish(x, attention(self.index, *self._project(x, cos, sin, query_scale, drafts)), drafts)
        parts = [self._project(x[t], cos[t], sin[t], _within(query_scale, t), _within(drafts, t)) for t in tiles]
        query, key, value = (torch.cat(part) for part in zip(*parts, strict=True))
        attended = attention(self.index, query, key, value)
        out = torch.empty_like(x)
        for tile in tiles:
            out[tile] = self._finish(x[tile], attended[tile], _within(drafts, tile))
        return out

    def _tiles(self, x: Tensor) -> list[slice]:
        """The rows in parts whose intermediate results stay in a processor's caches; all at once on a GPU, where the
        processes that share a model sum once a layer, and where gradients are wanted."""
        whole = x.shape[0] <= CACHE_TILE or x.is_cuda or self.total is not None or torch.is_grad_enabled()
        step = x.shape[0] if whole else CACHE_TILE
        return [slice(first, first + step) for first in range(0, x.shape[0], step)]

    def _linear(self, name: str, x: Tensor, drafts: Tensor | None) -> Tensor:
        """`x` through a projection, and through what the drafter's adapter adds to it."""
        out: Tensor = getattr(self, name)(x)
        return out if drafts is None or name not in self.drafter else self.drafter[name](x, out, drafts)

    def _project(
        self, x: Tensor, cos: Tensor, sin: Tensor, query_scale: Tensor | None, drafts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value `[rows, heads, head_dim]`, the first two rotated."""
        qkv = self._linear("qkv", self.attention_norm(x), drafts).view(x.shape[0], -1, self.head_dim)
        query, key, value = torch.split(qkv, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        return (query if query_scale is None else query * query_scale), key, value

    def _finish(self, x: Tensor, attended: Tensor, drafts: Tensor | None) -> Tensor:
        """The layer's output from its input and what attention gave."""
        projected = self._linear("attention_out", attended.reshape(x.shape[0], -1), drafts)
        x = x + (projected if self.total is None else self.total(projected))
        fed = self._feed_forward(self.mlp_norm(x), drafts)
        return x + (fed if self.total is None else self.total(fed))

    def _feed_forward(self, x: Tensor, drafts: Tensor | None) -> Tensor:
        """`[rows, hidden]` to `[rows, hidden]`."""
        if self.experts is not None:
            fed: Tensor = self.experts(x)
            return fed
        gate, up = self._linear("gate_up", x, drafts).chunk(2, dim=-1)
        return self._linear("down", self.arithmetic.gated_silu(gate, up), drafts)


def _within(rows: Tensor | None, tile: slice) -> Tensor | None:
    return None if rows is None else rows[tile]


class Backbone(nn.Module):
    """Embedding, layers, final norm and LM head.

    `forward` gives hidden states of every row; `head` is applied by the caller to the few rows that need logits. Its
    weight lies in memory as `[hidden, vocab]`, which a CPU multiplies by few rows 1.2 times as fast.

    Attributes:
        arithmetic: of products that are no layer's.
    """

    arithmetic: Arithmetic = PROVED

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary = Rotary(config)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        else:
            self.lm_head.weight = nn.Parameter(self.lm_head.weight.detach().t().contiguous().t())

    @property
    def has_drafter(self) -> bool:
        """Whether rows that draft go through an adapter (`dlm.models.lora.drafter`)."""
        return any(isinstance(layer, Layer) and len(layer.drafter) > 0 for layer in self.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention: Attention,
        embedded: Tensor | None = None,
        drafts: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            token_ids: `[tokens]` int64.
            positions: `[tokens]` int64, each token's place in its own canvas.
            attention: which rows attend to which keys.
            embedded: `[tokens, hidden]` in the model's dtype, taken instead of the embeddings of `token_ids`.
            drafts: `[tokens]` bool, rows that go through the drafter's adapter; None: none do.

        Returns:
            `[tokens, hidden]` in the model's dtype.
        """
        tokens = token_ids.shape[0]
        spare = -tokens % ROW_TILE
        if spare:
            token_ids, positions = F.pad(token_ids, (0, spare)), F.pad(positions, (0, spare))
            embedded = None if embedded is None else F.pad(embedded, (0, 0, 0, spare))
            drafts = None if drafts is None else F.pad(drafts, (0, spare))
        x = self.embedding(token_ids) if embedded is None else embedded
        wide = torch.float32 if self.config.full_precision_rope and x.dtype != torch.float64 else x.dtype
        cos, sin = self.rotary.gather(positions, wide)
        query_scale = self.rotary.gather_query_scale(positions, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, attention, query_scale, drafts)
        hidden: Tensor = self.final_norm(x)
        return hidden[:tokens]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[rows, vocab]` of `hidden [rows, hidden]`, in the model's dtype."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def sum_with(self, total: Callable[[Tensor], Tensor]) -> None:
        """Have `total` sum partial results `[rows, hidden]` over the processes that share the model."""
        for layer in self.layers:
            assert isinstance(layer, Layer)  # a ModuleList does not say what it holds
            layer.total = total

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Random weights, equal for equal seeds: normal, std 0.02, residual outputs scaled down by depth."""
        parameters = dict(self.named_parameters())
        for name, values in self.random_values(seed):
            parameters[name].copy_(values)

    def random_values(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Name and values, on the CPU in float32, of each parameter that `initialize` would fill; they may be meta."""
        generator = torch.Generator().manual_seed(seed)
        depth_scale = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                yield name, torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0)
                continue
            std = 0.02 * (depth_scale if name.endswith(RESIDUAL_OUTPUTS) else 1.0)
            yield name, torch.randn(parameter.shape, generator=generator) * std
