"""Config keys and tensor names that the Llama-like families share, after the layout of Hugging Face's own models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlm.models.architecture import BackboneConfig
from dlm.models.families.base import WeightPart
from dlm.models.families.common import EPSILON, FLAG, HEAD_DIM, HEADS, LAYERS, POSITIONS, VOCABULARY, WIDTH
from dlm.models.families.keys import Key, Relation, Values
from dlm.models.families.rope import rope_theta, rotary_faults, stretching

SHAPE = (
    Key("vocab_size", VOCABULARY),
    Key("hidden_size", WIDTH),
    Key("num_hidden_layers", LAYERS),
    Key("num_attention_heads", HEADS),
    Key("num_key_value_heads", HEADS, "null: num_attention_heads", nullable=True),
    Key("max_position_embeddings", POSITIONS),
    Key("rms_norm_eps", EPSILON),
    Key("tie_word_embeddings", FLAG),
)
"""Keys of a config that every family of this layout has."""

FREE_HEAD_DIM = Key("head_dim", HEAD_DIM, "left out: hidden_size by heads", optional=True)
HEAD_KEYS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings")

WITHOUT_WINDOWS = frozenset({"sliding_window", "max_window_layers"})
"""Keys that mean nothing where `use_sliding_window` is false, as it must be."""


def heads_fit() -> Relation:
    """Heads divide the width, keys and values divide heads, and a head can be rotated as a whole."""

    def check(values: Values) -> Iterator[str]:
        hidden, heads = values["hidden_size"], values["num_attention_heads"]
        if values["head_dim"] is None and hidden % heads:
            yield f"hidden_size={hidden} must divide by num_attention_heads={heads} where head_dim is absent"
            return
        kv_heads = values["num_key_value_heads"] or heads
        if heads % kv_heads:
            yield f"num_attention_heads={heads} must divide by num_key_value_heads={kv_heads}"
        dim = values["head_dim"] or hidden // heads
        of = (
            f"hidden_size={hidden} and num_attention_heads={heads}" if values["head_dim"] is None else f"head_dim={dim}"
        )
        yield from rotary_faults(dim, of, "max_position_embeddings", values)

    return Relation(HEAD_KEYS, check)


def read_shape(values: Values) -> dict[str, Any]:
    """The fields of `BackboneConfig` that `SHAPE`, `head_dim` and the keys of the rotary embedding stand for."""
    hidden, heads, positions = (
        values[key] for key in ("hidden_size", "num_attention_heads", "max_position_embeddings")
    )
    return {
        "vocab_size": values["vocab_size"],
        "hidden_size": hidden,
        "num_layers": values["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": values["num_key_value_heads"] or heads,
        "head_dim": values["head_dim"] or hidden // heads,
        "rms_norm_eps": values["rms_norm_eps"],
        "rope_theta": rope_theta(values),
        "max_positions": positions,
        "tie_embeddings": values["tie_word_embeddings"],
        "full_precision_rope": False,
        "yarn": stretching(values, positions),
    }


def write_shape(config: BackboneConfig) -> dict[str, Any]:
    """The keys of `SHAPE` and `head_dim`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def llama_weights(config: BackboneConfig, root: str = "model", head: str = "lm_head") -> dict[str, list[WeightPart]]:
    """Backbone parameter -> tensors named as in Llama, Qwen2 (biases), Qwen3 (head norms) and OLMoE (experts).

    Args:
        root: prefix of everything but the head.
        head: name of the LM head, without `.weight`.
    """
    table = outer_weights(config, f"{root}.embed_tokens", f"{root}.norm", head)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"{root}.layers.{index}"
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            table[f"{ours}.qkv.{kind}"] = [
                WeightPart(f"{theirs}.self_attn.q_proj.{kind}", 0, queries),
                WeightPart(f"{theirs}.self_attn.k_proj.{kind}", queries, keys),
                WeightPart(f"{theirs}.self_attn.v_proj.{kind}", queries + keys, keys),
            ]
        if config.qk_norm:
            table[f"{ours}.query_norm.weight"] = [WeightPart(f"{theirs}.self_attn.q_norm.weight", 0, config.head_dim)]
            table[f"{ours}.key_norm.weight"] = [WeightPart(f"{theirs}.self_attn.k_norm.weight", 0, config.head_dim)]
        table[f"{ours}.attention_out.weight"] = [WeightPart(f"{theirs}.self_attn.o_proj.weight", 0, config.hidden_size)]
        table |= block_weights(config, index, theirs)
    return table


def outer_weights(config: BackboneConfig, embedding: str, norm: str, head: str) -> dict[str, list[WeightPart]]:
    """What lies outside the layers."""
    table = {
        "embedding.weight": [WeightPart(f"{embedding}.weight", 0, config.vocab_size)],
        "final_norm.weight": [WeightPart(f"{norm}.weight", 0, config.hidden_size)],
    }
    if not config.tie_embeddings:
        table["lm_head.weight"] = [WeightPart(f"{head}.weight", 0, config.vocab_size)]
    return table


def block_weights(config: BackboneConfig, index: int, theirs: str) -> dict[str, list[WeightPart]]:
    """Norms and feed-forward of a layer, dense or of experts; `theirs` is the layer's prefix in the checkpoint."""
    ours, width = f"layers.{index}", config.hidden_size
    table = {
        f"{ours}.attention_norm.weight": [WeightPart(f"{theirs}.input_layernorm.weight", 0, width)],
        f"{ours}.mlp_norm.weight": [WeightPart(f"{theirs}.post_attention_layernorm.weight", 0, width)],
    }
    experts = config.experts
    if experts is None or not config.has_experts(index):
        return table | mlp_weights(
            f"{ours}.gate_up.weight", f"{ours}.down.weight", f"{theirs}.mlp", width, config.intermediate_size
        )
    table[f"{ours}.experts.router.weight"] = [WeightPart(f"{theirs}.mlp.gate.weight", 0, experts.num_experts)]
    if experts.choice_bias:
        table[f"{ours}.experts.router.bias"] = [WeightPart(f"{theirs}.mlp.gate.expert_bias", 0, experts.num_experts)]
    table[f"{ours}.experts.gate_up"], table[f"{ours}.experts.down"] = [], []
    for expert in range(experts.num_experts):
        parts = mlp_weights(
            f"{ours}.experts.gate_up",
            f"{ours}.experts.down",
            f"{theirs}.mlp.experts.{expert}",
            width,
            experts.inner_size,
            expert,
        )
        for name, pieces in parts.items():
            table[name] += pieces
    if experts.shared_size:
        table |= mlp_weights(
            f"{ours}.experts.shared_gate_up.weight",
            f"{ours}.experts.shared_down.weight",
            f"{theirs}.mlp.shared_experts",
            width,
            experts.shared_size,
        )
    return table


def mlp_weights(
    gate_up: str, down: str, theirs: str, width: int, inner: int, expert: int | None = None
) -> dict[str, list[WeightPart]]:
    """A gated feed-forward: the parameters called `gate_up` and `down`, out of three tensors under `theirs`."""
    return {
        gate_up: [
            WeightPart(f"{theirs}.gate_proj.weight", 0, inner, expert),
            WeightPart(f"{theirs}.up_proj.weight", inner, inner, expert),
        ],
        down: [WeightPart(f"{theirs}.down_proj.weight", 0, width, expert)],
    }
