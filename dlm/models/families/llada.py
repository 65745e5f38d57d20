"""Dense LLaDA: LLaDA-8B Base and Instruct, LLaDA-1.5 (arXiv 2502.09992, 2505.19223)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlm.models.architecture import BackboneConfig
from dlm.models.families.base import BIDIRECTIONAL, Family, SpecialTokens, WeightPart
from dlm.models.families.common import (
    END_IDS,
    EPSILON,
    FLAG,
    HEADS,
    IGNORED,
    LAYERS,
    POSITIONS,
    SHARED_KEYS,
    TOKEN_ID,
    UNSUPPORTED,
    VOCABULARY,
    WIDTH,
    ids_within,
)
from dlm.models.families.keys import Integer, Key, Relation, Schema, Values, fixed, written
from dlm.models.families.rope import rope_keys, rope_stated, rope_theta, rotary_faults, stretching, write_rope

LLADA_FIXED = (
    fixed("block_type", "llama", optional=False),
    fixed("activation_type", "silu", optional=False),
    fixed("layer_norm_type", "rms", optional=False),
    fixed("rope", True, optional=False),
    fixed("alibi", False, optional=False),
    fixed("include_bias", False, optional=False),
    fixed("include_qkv_bias", False, optional=False),
    fixed("attention_layer_norm", False, optional=False),
    fixed("bias_for_layer_norm", False, None, optional=False),
    fixed("layer_norm_with_affine", True, optional=False),
    fixed("input_emb_norm", False, optional=False),
    fixed("scale_logits", False, optional=False),
    fixed("multi_query_attention", None, False, optional=False),
    fixed("block_group_size", 1, optional=False),
)
"""Keys that change the architecture, with the values that the released LLaDA models have."""

LLADA_KEYS = Schema(
    (
        Key("d_model", WIDTH),
        Key("n_heads", HEADS),
        Key("n_kv_heads", HEADS, "null: n_heads", nullable=True),
        Key("n_layers", LAYERS),
        Key("mlp_hidden_size", WIDTH, "null: d_model times mlp_ratio", nullable=True),
        Key("mlp_ratio", Integer(1, 64), optional=True),
        Key("vocab_size", VOCABULARY),
        Key("embedding_size", VOCABULARY, "null: vocab_size", nullable=True),
        Key("max_sequence_length", POSITIONS),
        Key("rms_norm_eps", EPSILON),
        Key("rope_full_precision", FLAG),
        Key("weight_tying", FLAG),
        Key("mask_token_id", TOKEN_ID),
        Key("eos_token_id", END_IDS, nullable=True),
        *rope_keys(),
        *LLADA_FIXED,
        *SHARED_KEYS,
    ),
    ignored=IGNORED
    | {
        "attention_layer_norm_with_affine", "embedding_dropout", "residual_dropout", "alibi_bias_max",
        "flash_attention", "init_device", "init_fn", "init_std", "init_cutoff_factor", "precision",
    },
    unsupported=UNSUPPORTED,
    owner="llada models",
)  # fmt: skip


def _heads_fit(values: Values) -> Iterator[str]:
    width, heads = values["d_model"], values["n_heads"]
    kv_heads = values["n_kv_heads"] or heads
    if width % heads or heads % kv_heads:
        yield f"d_model={width} must divide by n_heads={heads}, and that by n_kv_heads={kv_heads}"
        return
    if values["multi_query_attention"] is False and kv_heads != heads:
        yield f"multi_query_attention=False and n_kv_heads={kv_heads} must agree: n_kv_heads is n_heads={heads} then"
    of = f"d_model={width} and n_heads={heads}"
    yield from rotary_faults(width // heads, of, "max_sequence_length", values)


def _feed_forward_fits(values: Values) -> Iterator[str]:
    if values["mlp_hidden_size"] is None and values["mlp_ratio"] is None:
        yield "mlp_hidden_size=null must be an integer where mlp_ratio is left out"


def build_llada(values: Values) -> BackboneConfig:
    """Dense LLaDA (GSAI-ML/LLaDA-8B-*, LLaDA-1.5), `model_type: llada`. Null stands for the rules of its class."""
    width, heads, positions = values["d_model"], values["n_heads"], values["max_sequence_length"]
    return BackboneConfig(
        vocab_size=values["embedding_size"] or values["vocab_size"],
        hidden_size=width,
        intermediate_size=values["mlp_hidden_size"] or width * values["mlp_ratio"],
        num_layers=values["n_layers"],
        num_heads=heads,
        num_kv_heads=values["n_kv_heads"] or heads,
        head_dim=width // heads,
        rms_norm_eps=values["rms_norm_eps"],
        rope_theta=rope_theta(values),
        max_positions=positions,
        tie_embeddings=values["weight_tying"],
        full_precision_rope=values["rope_full_precision"],
        yarn=stretching(values, positions),
    )


def write_llada(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """The config.json that the released programs read, for a checkpoint of ours."""
    rope = {key: value for key, value in write_rope(config).items() if value is not None}
    return {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        **written(LLADA_FIXED),
        **rope,
        "d_model": config.hidden_size,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "n_layers": config.num_layers,
        "mlp_hidden_size": config.intermediate_size,
        "mlp_ratio": 4,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "max_sequence_length": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_full_precision": config.full_precision_rope,
        "weight_tying": config.tie_embeddings,
        "mask_token_id": special.mask_id,
        "eos_token_id": special.named_eos,
        "pad_token_id": special.eos_id,
        "attention_layer_norm_with_affine": True,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
        "alibi_bias_max": 8.0,
        "flash_attention": False,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "init_cutoff_factor": None,
        "precision": "amp_bf16",
        "torch_dtype": "float32",
        "use_cache": False,
    }


def weights_llada(config: BackboneConfig) -> dict[str, list[WeightPart]]:
    """Backbone parameter -> LLaDA tensors; ff_proj is the gate, up_proj the up, ff_out the down projection."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    root = "model.transformer"
    table = {
        "embedding.weight": [WeightPart(f"{root}.wte.weight", 0, config.vocab_size)],
        "final_norm.weight": [WeightPart(f"{root}.ln_f.weight", 0, width)],
    }
    if not config.tie_embeddings:
        table["lm_head.weight"] = [WeightPart(f"{root}.ff_out.weight", 0, config.vocab_size)]
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"{root}.blocks.{index}"
        table[f"{ours}.attention_norm.weight"] = [WeightPart(f"{theirs}.attn_norm.weight", 0, width)]
        table[f"{ours}.qkv.weight"] = [
            WeightPart(f"{theirs}.q_proj.weight", 0, queries),
            WeightPart(f"{theirs}.k_proj.weight", queries, keys),
            WeightPart(f"{theirs}.v_proj.weight", queries + keys, keys),
        ]
        table[f"{ours}.attention_out.weight"] = [WeightPart(f"{theirs}.attn_out.weight", 0, width)]
        table[f"{ours}.mlp_norm.weight"] = [WeightPart(f"{theirs}.ff_norm.weight", 0, width)]
        table[f"{ours}.gate_up.weight"] = [
            WeightPart(f"{theirs}.ff_proj.weight", 0, inner),
            WeightPart(f"{theirs}.up_proj.weight", inner, inner),
        ]
        table[f"{ours}.down.weight"] = [WeightPart(f"{theirs}.ff_out.weight", 0, width)]
    return table


LLADA = Family(
    name="llada",
    architectures=("LLaDAModelLM",),
    default_algorithm="dinfer_blockwise",
    algorithms=BIDIRECTIONAL,
    turn_end="<|eot_id|>",
    schema=LLADA_KEYS,
    relations=(
        Relation(("d_model", "n_heads", "n_kv_heads", "multi_query_attention", "max_sequence_length"), _heads_fit),
        Relation(("mlp_hidden_size", "mlp_ratio"), _feed_forward_fits),
        rope_stated(),
        ids_within("embedding_size", "vocab_size"),
    ),
    build=build_llada,
    write_config=write_llada,
    weights=weights_llada,
)
