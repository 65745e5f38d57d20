"""LLaDA-MoE: inclusionAI/LLaDA-MoE-7B-A1B-Base and -Instruct (arXiv 2509.24389).

Its `model_type` is that of dense LLaDA, so that only `architectures` tells them apart.
"""

from __future__ import annotations

from typing import Any

from dlm.models.architecture import BackboneConfig, ExpertsConfig
from dlm.models.families.base import BIDIRECTIONAL, Family, SpecialTokens
from dlm.models.families.common import (
    END_IDS,
    EXPERTS,
    FLAG,
    IGNORED,
    SHARED_KEYS,
    TOKEN_ID,
    UNSUPPORTED,
    WIDTH,
    experts_within,
    ids_within,
)
from dlm.models.families.keys import Key, OneOrMany, Only, Schema, Values, fixed, written
from dlm.models.families.layout import FREE_HEAD_DIM, SHAPE, heads_fit, llama_weights, read_shape, write_shape
from dlm.models.families.rope import rope_keys, rope_stated, write_rope

LLADA_MOE_FIXED = (
    fixed("hidden_act", "silu"),
    fixed("qk_layernorm", True, optional=False),
    fixed("attention_bias", False),
    fixed("clip_qkv", None),
    fixed("moe_router_enable_expert_bias", None, False),
    fixed("moe_router_score_function", None, "softmax"),
    fixed("routed_scaling_factor", 1),
    fixed("router_num_group", None),
    fixed("router_topk_group", None),
    fixed("shared_expert_intermediate_size", None, 0),
)
LLADA_MOE_KEYS = Schema(
    (
        *SHAPE,
        FREE_HEAD_DIM,
        Key("dense_intermediate_size", WIDTH, optional=True),
        Key("expert_intermediate_size", WIDTH),
        Key("num_experts", EXPERTS),
        Key("num_experts_per_tok", EXPERTS),
        Key("norm_topk_prob", FLAG, nullable=True, default=False),
        Key("moe_layer_freq", OneOrMany(Only(1)), "1: a layer of experts"),
        Key("mask_token_id", TOKEN_ID, optional=True),
        Key("eos_token_id", END_IDS, optional=True),
        *rope_keys(),
        *LLADA_MOE_FIXED,
        *SHARED_KEYS,
    ),
    ignored=IGNORED | {"output_router_logits", "router_aux_loss_coef"},
    unsupported=UNSUPPORTED,
    owner="llada_moe models",
)


def build_llada_moe(values: Values) -> BackboneConfig:
    """Every layer is a mixture of experts behind a softmax router; heads of query and key are normed."""
    inner = values["expert_intermediate_size"]
    return BackboneConfig(
        **read_shape(values),
        intermediate_size=values["dense_intermediate_size"] or inner,
        qk_norm=True,
        experts=ExpertsConfig(
            num_experts=values["num_experts"],
            top_k=values["num_experts_per_tok"],
            inner_size=inner,
            normalize=values["norm_topk_prob"],
        ),
    )


def write_llada_moe(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """The config.json that the released program reads, with the mask id, which the released files leave out."""
    experts = config.experts
    assert experts is not None  # models of this family have them
    return {
        "model_type": "llada",
        "architectures": ["LLaDAMoEModelLM"],
        **written(LLADA_MOE_FIXED),
        **write_shape(config),
        **write_rope(config),
        "partial_rotary_factor": 1,
        "dense_intermediate_size": config.intermediate_size,
        "expert_intermediate_size": experts.inner_size,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.normalize or None,
        "moe_layer_freq": [1] * config.num_layers,
        "mask_token_id": special.mask_id,
        "eos_token_id": special.named_eos,
        "pad_token_id": special.eos_id,
    }


LLADA_MOE = Family(
    name="llada_moe",
    architectures=("LLaDAMoEModelLM", "LLaDAMoEModel"),
    default_algorithm="dinfer_blockwise",
    algorithms=BIDIRECTIONAL,
    turn_end="<|role_end|>",
    schema=LLADA_MOE_KEYS,
    relations=(heads_fit(), rope_stated(), experts_within(), ids_within("vocab_size")),
    build=build_llada_moe,
    write_config=write_llada_moe,
    weights=llama_weights,
    mask_text="<|mask|>",
    eos_text="<|endoftext|>",
)
