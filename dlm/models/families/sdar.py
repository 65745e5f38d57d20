"""SDAR: JetLM/SDAR-8B-Chat and its kin (arXiv 2510.06303), in the layout of Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.models.architecture import BackboneConfig
from dlm.models.families.base import BLOCK_CAUSAL, Family, SpecialTokens, refuse, require
from dlm.models.families.layout import SHAPE, llama_weights, read_ids, read_shape, write_shape

BLOCK_LENGTH = 4
SDAR_SHAPE = (*SHAPE, "head_dim", "intermediate_size", "rope_theta", "attention_bias")
SDAR_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
}


def read_sdar(config: Mapping[str, Any]) -> BackboneConfig:
    """Heads of query and key are normed; `block_size` is the native block, 4 where the config leaves it out."""
    require(config, SDAR_SHAPE)
    refuse(config, SDAR_SUPPORTED)
    return BackboneConfig(
        **read_shape(config),
        intermediate_size=config["intermediate_size"],
        rope_theta=config["rope_theta"],
        qk_norm=True,
        attention="block_causal",
        block_length=config.get("block_size") or BLOCK_LENGTH,
    )


def write_sdar(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """The config.json that the released program reads."""
    return {
        "model_type": "sdar",
        "architectures": ["SDARForCausalLM"],
        **{key: values[0] for key, values in SDAR_SUPPORTED.items()},
        **write_shape(config),
        "intermediate_size": config.intermediate_size,
        "rope_theta": config.rope_theta,
        "block_size": config.block_length,
        "max_window_layers": config.num_layers,
        "mask_token_id": special.mask_id,
        "eos_token_id": special.eos_id,
        "bos_token_id": special.eos_id,
        "pad_token_id": special.eos_id,
    }


SDAR = Family(
    name="sdar",
    architectures=("SDARForCausalLM",),
    default_algorithm="sdar",
    algorithms=("sdar", *BLOCK_CAUSAL),
    turn_end="<|im_end|>",
    read_config=read_sdar,
    write_config=write_sdar,
    read_special=read_ids,
    weights=llama_weights,
    mask_text="<|MASK|>",
    eos_text="<|endoftext|>",
    block_length=BLOCK_LENGTH,
)
