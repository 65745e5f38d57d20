"""Dense LLaDA: LLaDA-8B Base and Instruct, LLaDA-1.5 (arXiv 2502.09992, 2505.19223)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.errors import CheckpointError
from dlm.models.architecture import BackboneConfig
from dlm.models.families.base import BIDIRECTIONAL, Family, NamedIds, SpecialTokens, WeightPart, refuse, require

LLADA_SHAPE = (
    "d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "vocab_size", "embedding_size",
    "max_sequence_length", "rms_norm_eps", "rope_theta", "rope_full_precision", "weight_tying",
    "mask_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
LLADA_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "alibi": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "layer_norm_with_affine": (True,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "multi_query_attention": (None, False),
    "block_group_size": (1,),
}
"""Keys that change the architecture, with the values that the released LLaDA models have."""


def read_llada(config: Mapping[str, Any]) -> BackboneConfig:
    """Dense LLaDA (GSAI-ML/LLaDA-8B-*, LLaDA-1.5), `model_type: llada`."""
    require(config, (*LLADA_SHAPE, *LLADA_SUPPORTED))
    refuse(config, LLADA_SUPPORTED)
    if config["d_model"] % config["n_heads"] or config["n_heads"] % config["n_kv_heads"]:
        raise CheckpointError(
            f"config.json: d_model={config['d_model']} must divide by n_heads={config['n_heads']}, and that by "
            f"n_kv_heads={config['n_kv_heads']}"
        )
    return BackboneConfig(
        vocab_size=config["embedding_size"] or config["vocab_size"],
        hidden_size=config["d_model"],
        intermediate_size=config["mlp_hidden_size"],
        num_layers=config["n_layers"],
        num_heads=config["n_heads"],
        num_kv_heads=config["n_kv_heads"],
        head_dim=config["d_model"] // config["n_heads"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_theta=config["rope_theta"],
        max_positions=config["max_sequence_length"],
        tie_embeddings=config["weight_tying"],
        full_precision_rope=config["rope_full_precision"],
    )


def write_llada(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """The config.json that the released programs read, for a checkpoint of ours."""
    supported = {key: values[0] for key, values in LLADA_SUPPORTED.items()}
    return {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        **supported,
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
        "rope_theta": config.rope_theta,
        "rope_full_precision": config.full_precision_rope,
        "weight_tying": config.tie_embeddings,
        "mask_token_id": special.mask_id,
        "eos_token_id": special.eos_id,
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


def special_llada(config: Mapping[str, Any]) -> NamedIds:
    return NamedIds(mask_id=config["mask_token_id"], eos_id=config["eos_token_id"])


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
    read_config=read_llada,
    write_config=write_llada,
    read_special=special_llada,
    weights=weights_llada,
)
