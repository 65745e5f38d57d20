"""LLaDA-MoE: inclusionAI/LLaDA-MoE-7B-A1B-Base and -Instruct (arXiv 2509.24389).

Its `model_type` is that of dense LLaDA, so that only `architectures` tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.errors import CheckpointError
from dlm.models.architecture import BackboneConfig, ExpertsConfig
from dlm.models.families.base import BIDIRECTIONAL, Family, SpecialTokens, refuse, require
from dlm.models.families.layout import SHAPE, llama_weights, read_ids, read_shape, write_shape

LLADA_MOE_SHAPE = (
    *SHAPE, "rope_theta", "num_experts", "num_experts_per_tok", "expert_intermediate_size", "norm_topk_prob",
    "moe_layer_freq", "qk_layernorm",
)  # fmt: skip
LLADA_MOE_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "qk_layernorm": (True,),
    "attention_bias": (False,),
    "clip_qkv": (None,),
    "moe_router_enable_expert_bias": (None, False),
    "moe_router_score_function": (None, "softmax"),
    "norm_topk_prob": (None, False, True),
    "partial_rotary_factor": (1,),
    "rope_scaling": (None,),
    "routed_scaling_factor": (1,),
    "router_num_group": (None,),
    "router_topk_group": (None,),
    "shared_expert_intermediate_size": (None, 0),
}


def read_llada_moe(config: Mapping[str, Any]) -> BackboneConfig:
    """Every layer is a mixture of experts behind a softmax router; heads of query and key are normed."""
    require(config, LLADA_MOE_SHAPE)
    refuse(config, LLADA_MOE_SUPPORTED)
    frequency = config["moe_layer_freq"]
    if any(value != 1 for value in (frequency if isinstance(frequency, list) else [frequency])):
        raise CheckpointError(
            f"config.json: moe_layer_freq={frequency!r}; only models of MoE layers alone are supported"
        )
    return BackboneConfig(
        **read_shape(config),
        intermediate_size=config.get("dense_intermediate_size") or config["expert_intermediate_size"],
        rope_theta=config["rope_theta"],
        qk_norm=True,
        experts=ExpertsConfig(
            num_experts=config["num_experts"],
            top_k=config["num_experts_per_tok"],
            inner_size=config["expert_intermediate_size"],
            normalize=bool(config["norm_topk_prob"]),
        ),
    )


def write_llada_moe(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """The config.json that the released program reads, with the mask id, which the released files leave out."""
    experts = config.experts
    assert experts is not None  # models of this family have them
    return {
        "model_type": "llada",
        "architectures": ["LLaDAMoEModelLM"],
        **{key: values[0] for key, values in LLADA_MOE_SUPPORTED.items()},
        **write_shape(config),
        "rope_theta": config.rope_theta,
        "dense_intermediate_size": config.intermediate_size,
        "expert_intermediate_size": experts.inner_size,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.normalize or None,
        "moe_layer_freq": [1] * config.num_layers,
        "mask_token_id": special.mask_id,
        "eos_token_id": special.eos_id,
        "pad_token_id": special.eos_id,
    }


LLADA_MOE = Family(
    name="llada_moe",
    architectures=("LLaDAMoEModelLM", "LLaDAMoEModel"),
    default_algorithm="dinfer_blockwise",
    algorithms=BIDIRECTIONAL,
    turn_end="<|role_end|>",
    read_config=read_llada_moe,
    write_config=write_llada_moe,
    read_special=read_ids,
    weights=llama_weights,
    mask_text="<|mask|>",
    eos_text="<|endoftext|>",
)
