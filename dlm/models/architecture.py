"""The architecture of a model as plain values; read from a checkpoint's config by its family, needed by all model code.

Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ROW_TILE = 4
"""Rows that are reduced together are rounded up to a multiple of this: a lone row would be split among threads."""


@dataclass(frozen=True)
class ExpertsConfig:
    """Mixture-of-experts feed-forward layers.

    Attributes:
        num_experts: routed experts of a layer.
        top_k: experts that a token goes to.
        inner_size: width of one expert.
        first_layer: layers before it are dense, with the backbone's `intermediate_size`.
        scores: `softmax` over all experts, or a `sigmoid` each.
        normalize: whether the chosen scores are divided by their sum.
        scaling: factor on the weights of the routed experts.
        groups, top_groups: experts lie in `groups` equal groups; a token's experts come from its best `top_groups`.
        choice_bias: whether a learned bias is added to the scores for choosing (never for weighting).
        shared_size: width of the expert that every token goes to; 0 without one.
    """

    num_experts: int
    top_k: int
    inner_size: int
    first_layer: int = 0
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = False
    scaling: float = 1.0
    groups: int = 1
    top_groups: int = 1
    choice_bias: bool = False
    shared_size: int = 0


@dataclass(frozen=True)
class YarnConfig:
    """YaRN scaling of the rotary embedding (arXiv 2309.00071) with a scaling of queries by position.

    Attributes:
        factor: by which low frequencies are stretched.
        original_positions: context length before stretching; also the period of the query scaling.
        beta_fast, beta_slow: rotations over the original context above which a dimension is left alone, and below
            which it is stretched fully.
        mscale, mscale_all_dim: exponents of the factor on cosines and sines.
        query_beta: queries are multiplied by `1 + query_beta * log(1 + floor(position / original_positions))`.
    """

    factor: float
    original_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0
    query_beta: float = 0.0


AttentionKind = Literal["bidirectional", "block_causal", "causal_context"]


@dataclass(frozen=True)
class BackboneConfig:
    """The architecture, read from a checkpoint's config by its family.

    Attributes:
        intermediate_size: width of the dense feed-forward layers.
        full_precision_rope: whether rotation is in float32 whatever the model's dtype.
        qkv_bias: whether the query, key and value projections have a bias.
        qk_norm: whether each head of query and key goes through an RMS norm before rotation.
        rotary_dim: leading dimensions of a head that are rotated; None rotates all.
        experts: mixture-of-experts layers, or None.
        yarn: stretched rotary embedding, or None.
        shifted: whether row i of the logits predicts position i + 1.
        attention: who sees whom: `bidirectional` (every position every other), `block_causal` (its own block and those
            before it) or `causal_context` (its own block, and what lies before that as a causal model saw it).
        block_length: positions of a block where the attention has blocks; None for a bidirectional model.
    """

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
    qkv_bias: bool = False
    qk_norm: bool = False
    rotary_dim: int | None = None
    experts: ExpertsConfig | None = None
    yarn: YarnConfig | None = None
    shifted: bool = False
    attention: AttentionKind = "bidirectional"
    block_length: int | None = None

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the arena holds for one token: keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def has_experts(self, layer: int) -> bool:
        """Whether the layer's feed-forward is a mixture of experts."""
        return self.experts is not None and layer >= self.experts.first_layer
