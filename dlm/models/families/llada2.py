"""LLaDA 2.0 and 2.1: inclusionAI/LLaDA2.0-mini and its kin (arXiv 2512.15745)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlm.models.architecture import BackboneConfig, ExpertsConfig
from dlm.models.families.base import BLOCK_CAUSAL, Family, SpecialTokens, WeightPart
from dlm.models.families.common import (
    END_IDS,
    EXPERTS,
    FLAG,
    HEAD_DIM,
    IGNORED,
    LAYERS,
    SHARED_KEYS,
    TOKEN_ID,
    UNSUPPORTED,
    WIDTH,
    experts_within,
    ids_within,
)
from dlm.models.families.keys import Integer, Key, Real, Relation, Schema, Values, fixed, lacking, written
from dlm.models.families.layout import (
    SHAPE,
    WITHOUT_WINDOWS,
    block_weights,
    heads_fit,
    outer_weights,
    read_shape,
    write_shape,
)
from dlm.models.families.rope import ROPE_KEYS, rope_keys, rope_stated, rotary_faults, rotated_part, write_rope

BLOCK_LENGTH = 32
LLADA2_FIXED = (
    fixed("hidden_act", "silu"),
    fixed("norm_head", False),
    fixed("norm_softmax", False),
    fixed("router_dtype", "fp32"),
    fixed("score_function", "sigmoid", optional=False),
    fixed("use_bias", False),
    fixed("use_qk_norm", True),
    fixed("use_qkv_bias", False),
    fixed("use_rmsnorm", True),
    fixed("use_sliding_window", False),
    fixed("using_split_qkv_in_self_attention", False),
)
"""The released files leave `use_qk_norm` out; their program norms query and key whatever it says."""

NEWER = "it belongs to LLaDA2.2, whose experts are chosen by block and whose decoding inserts and deletes"
LLADA2_KEYS = Schema(
    (
        *SHAPE,
        Key("head_dim", HEAD_DIM),
        Key("rotary_dim", HEAD_DIM, optional=True),
        Key("intermediate_size", WIDTH, "of dense layers"),
        Key("first_k_dense_replace", Integer(0, LAYERS.high), "dense layers before those of experts"),
        Key("moe_intermediate_size", WIDTH, "of one expert"),
        Key("num_experts", EXPERTS),
        Key("num_experts_per_tok", EXPERTS),
        Key("num_shared_experts", Integer(0, 64), nullable=True, default=0),
        Key("n_group", EXPERTS),
        Key("topk_group", EXPERTS),
        Key("norm_topk_prob", FLAG),
        Key("routed_scaling_factor", Real(1e-4, 1e4)),
        Key("moe_router_enable_expert_bias", FLAG),
        Key("mask_token_id", TOKEN_ID, optional=True),
        Key("eos_token_id", END_IDS, optional=True),
        *rope_keys(Real(1e-3, 1.0)),
        *LLADA2_FIXED,
        *SHARED_KEYS,
    ),
    ignored=IGNORED | WITHOUT_WINDOWS | {"embedding_dropout", "output_dropout", "output_router_logits"},
    unsupported={
        **UNSUPPORTED,
        **dict.fromkeys(("expert_capacity", "block_size", "delete_token_id", "split_token_id"), NEWER),
    },
    owner="llada2 models",
)


def _groups_fit(values: Values) -> Iterator[str]:
    experts, groups, best = values["num_experts"], values["n_group"], values["topk_group"]
    if experts % groups:
        yield f"num_experts={experts} must divide by n_group={groups}"
    elif best > groups:
        yield f"topk_group={best} must be at most n_group={groups}"
    elif values["num_experts_per_tok"] > best * (experts // groups):
        yield f"num_experts_per_tok={values['num_experts_per_tok']} must be at most what topk_group={best} groups hold"


def _rotation_fits(values: Values) -> Iterator[str]:
    dim, stated, part = values["head_dim"], values["rotary_dim"], rotated_part(values)
    if part is None and stated is None:
        yield lacking(["partial_rotary_factor"])
    elif part is not None and stated is not None and stated != int(dim * part):
        yield f"rotary_dim={stated} must be head_dim={dim} times partial_rotary_factor={part:g}"
    elif (stated or 0) > dim:
        yield f"rotary_dim={stated} must be at most head_dim={dim}"
    else:
        of = f"rotary_dim={stated}" if part is None else f"head_dim={dim} and partial_rotary_factor={part:g}"
        yield from rotary_faults(_rotary_dim(values), of, "max_position_embeddings", values)


def _rotary_dim(values: Values) -> int:
    part = rotated_part(values)
    return int(values["rotary_dim"] if part is None else values["head_dim"] * part)


def build_llada2(values: Values) -> BackboneConfig:
    """Dense layers first, then experts behind a sigmoid router with groups; part of each head is rotated."""
    return BackboneConfig(
        **read_shape(values),
        intermediate_size=values["intermediate_size"],
        qk_norm=True,
        rotary_dim=_rotary_dim(values),
        attention="block_causal",
        block_length=BLOCK_LENGTH,
        experts=ExpertsConfig(
            num_experts=values["num_experts"],
            top_k=values["num_experts_per_tok"],
            inner_size=values["moe_intermediate_size"],
            first_layer=values["first_k_dense_replace"],
            scores="sigmoid",
            normalize=values["norm_topk_prob"],
            scaling=values["routed_scaling_factor"],
            groups=values["n_group"],
            top_groups=values["topk_group"],
            choice_bias=values["moe_router_enable_expert_bias"],
            shared_size=values["moe_intermediate_size"] * values["num_shared_experts"],
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
        **written(LLADA2_FIXED),
        **write_shape(config),
        **write_rope(config),
        "intermediate_size": config.intermediate_size,
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
        "eos_token_id": special.named_eos,
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
    schema=LLADA2_KEYS,
    relations=(
        heads_fit(),
        rope_stated(),
        Relation(("head_dim", "rotary_dim", "max_position_embeddings", *ROPE_KEYS), _rotation_fits),
        experts_within(),
        Relation(("num_experts", "num_experts_per_tok", "n_group", "topk_group"), _groups_fit),
        ids_within("vocab_size"),
    ),
    build=build_llada2,
    write_config=write_llada2,
    weights=weights_llada2,
    mask_text="<|mask|>",
    eos_text="<|endoftext|>",
    block_length=BLOCK_LENGTH,
)
