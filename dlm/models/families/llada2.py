"""LLaDA 2.0 and 2.1: inclusionAI/LLaDA2.0-mini and its kin (arXiv 2512.15745)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.errors import CheckpointError
from dlm.models.architecture import BackboneConfig, ExpertsConfig
from dlm.models.families.base import BLOCK_CAUSAL, Family, SpecialTokens, WeightPart, refuse, require
from dlm.models.families.layout import SHAPE, block_weights, outer_weights, read_ids, read_shape, write_shape

BLOCK_LENGTH = 32
LLADA2_SHAPE = (
    *SHAPE, "head_dim", "intermediate_size", "rope_theta", "partial_rotary_factor", "first_k_dense_replace",
    "moe_intermediate_size", "num_experts", "num_experts_per_tok", "num_shared_experts", "n_group", "topk_group",
    "norm_topk_prob", "routed_scaling_factor", "moe_router_enable_expert_bias", "score_function", "use_qk_norm",
)  # fmt: skip
LLADA2_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "norm_head": (False,),
    "norm_softmax": (False,),
    "norm_topk_prob": (True, False),
    "rope_scaling": (None,),
    "router_dtype": ("fp32",),
    "score_function": ("sigmoid",),
    "use_bias": (False,),
    "use_qk_norm": (True,),
    "use_qkv_bias": (False,),
    "use_rmsnorm": (True,),
    "use_sliding_window": (False,),
    "using_split_qkv_in_self_attention": (False,),
}


def read_llada2(config: Mapping[str, Any]) -> BackboneConfig:
    """Dense layers first, then experts behind a sigmoid router with groups; part of each head is rotated."""
    require(config, LLADA2_SHAPE)
    refuse(config, LLADA2_SUPPORTED)
    if config["num_experts"] % config["n_group"]:
        raise CheckpointError(
            f"config.json: num_experts={config['num_experts']} must divide by n_group={config['n_group']}"
        )
    return BackboneConfig(
        **read_shape(config),
        intermediate_size=config["intermediate_size"],
        rope_theta=config["rope_theta"],
        qk_norm=True,
        rotary_dim=int(config["head_dim"] * config["partial_rotary_factor"]),
        attention="block_causal",
        block_length=BLOCK_LENGTH,
        experts=ExpertsConfig(
            num_experts=config["num_experts"],
            top_k=config["num_experts_per_tok"],
            inner_size=config["moe_intermediate_size"],
            first_layer=config["first_k_dense_replace"],
            scores="sigmoid",
            normalize=config["norm_topk_prob"],
            scaling=config["routed_scaling_factor"],
            groups=config["n_group"],
            top_groups=config["topk_group"],
            choice_bias=config["moe_router_enable_expert_bias"],
            shared_size=config["moe_intermediate_size"] * (config["num_shared_experts"] or 0),
        ),
    )


def write_llada2(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """The config.json that the released program reads, with the mask id, which the released files leave out."""
    experts = config.experts
    assert experts is not None  # models of this family have them
    rotary_dim = config.rotary_dim or config.head_dim
    return {
        "model_type": "llada2_moe",
        "architectures": ["LLaDA2MoeModelLM"],
        **{key: values[0] for key, values in LLADA2_SUPPORTED.items()},
        **write_shape(config),
        "intermediate_size": config.intermediate_size,
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": rotary_dim / config.head_dim,
        "rotary_dim": rotary_dim,
        "first_k_dense_replace": experts.first_layer,
        "moe_intermediate_size": experts.inner_size,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "num_shared_experts": experts.shared_size // experts.inner_size,
        "n_group": experts.groups,
        "topk_group": experts.top_groups,
        "norm_topk_prob": experts.normalize,
        "routed_scaling_factor": experts.scaling,
        "moe_router_enable_expert_bias": experts.choice_bias,
        "mask_token_id": special.mask_id,
        "eos_token_id": special.eos_id,
        "pad_token_id": special.eos_id,
    }


def weights_llada2(config: BackboneConfig) -> dict[str, list[WeightPart]]:
    """Backbone parameter -> LLaDA2 tensors; query, key and value are one tensor, laid out as ours is."""
    table = outer_weights(config, "model.word_embeddings", "model.norm", "lm_head")
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        attention = f"{theirs}.attention"
        table[f"{ours}.qkv.weight"] = [WeightPart(f"{attention}.query_key_value.weight", 0, rows)]
        table[f"{ours}.query_norm.weight"] = [WeightPart(f"{attention}.query_layernorm.weight", 0, config.head_dim)]
        table[f"{ours}.key_norm.weight"] = [WeightPart(f"{attention}.key_layernorm.weight", 0, config.head_dim)]
        table[f"{ours}.attention_out.weight"] = [WeightPart(f"{attention}.dense.weight", 0, config.hidden_size)]
        table |= block_weights(config, index, theirs)
    return table


LLADA2 = Family(
    name="llada2",
    architectures=("LLaDA2MoeModelLM",),
    default_algorithm="llada2",
    algorithms=("llada2", "llada21", *BLOCK_CAUSAL),
    turn_end="<|role_end|>",
    read_config=read_llada2,
    write_config=write_llada2,
    read_special=read_ids,
    weights=weights_llada2,
    mask_text="<|mask|>",
    eos_text="<|endoftext|>",
    block_length=BLOCK_LENGTH,
)
