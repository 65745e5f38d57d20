"""Dream: Dream-org/Dream-v0-Base-7B and -Instruct-7B (arXiv 2508.15487), in the layout of Qwen2.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.models.architecture import BackboneConfig
from dlm.models.families.base import Family, SpecialTokens, refuse, require
from dlm.models.families.layout import SHAPE, llama_weights, read_ids, read_shape, write_shape

DREAM_SHAPE = (*SHAPE, "intermediate_size", "rope_theta", "mask_token_id", "eos_token_id")
DREAM_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False,),
    "use_mrope": (False,),
}


def read_dream(config: Mapping[str, Any]) -> BackboneConfig:
    """Biases on query, key and value; row i of the logits predicts position i + 1."""
    require(config, DREAM_SHAPE)
    refuse(config, DREAM_SUPPORTED)
    return BackboneConfig(
        **read_shape(config),
        intermediate_size=config["intermediate_size"],
        rope_theta=config["rope_theta"],
        qkv_bias=True,
        shifted=True,
    )


def write_dream(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """The config.json that the released program reads."""
    return {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        **{key: values[0] for key, values in DREAM_SUPPORTED.items()},
        **write_shape(config),
        "intermediate_size": config.intermediate_size,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "max_window_layers": config.num_layers,
        "mask_token_id": special.mask_id,
        "eos_token_id": special.eos_id,
        "bos_token_id": special.eos_id,
        "pad_token_id": special.eos_id,
    }


DREAM = Family(
    name="dream",
    architectures=("DreamModel",),
    default_algorithm="dream",
    algorithms=("dream", "fastdllm_dream", "basic", "prefix_cache", "dual_cache"),
    turn_end="<|im_end|>",
    read_config=read_dream,
    write_config=write_dream,
    read_special=read_ids,
    weights=llama_weights,
)
