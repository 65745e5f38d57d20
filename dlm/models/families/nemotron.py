"""Nemotron-Labs-Diffusion: nvidia/Nemotron-Labs-Diffusion-3B, -8B and -14B, in the layout of Ministral 3.

No released file was at hand when this was written: keys and tensor names are those that several public programs read
from the released checkpoints, and the forward is held to the causal Ministral 3 of transformers. The instruct
repositories hold a LoRA adapter for drafting in `linear_spec_lora` (rank 128, of each layer's `o_proj`);
`model.drafter_adapter_path` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.models.architecture import BackboneConfig, YarnConfig
from dlm.models.families.base import Family, SpecialTokens, WeightPart, refuse, require
from dlm.models.families.layout import SHAPE, llama_weights, read_ids, read_shape, write_shape

NEMOTRON_SHAPE = (
    *SHAPE, "head_dim", "intermediate_size", "rope_parameters", "block_size", "mask_token_id", "eos_token_id",
)  # fmt: skip
NEMOTRON_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "tie_word_embeddings": (False,),
}
ROPE_SHAPE = (
    "rope_type", "rope_theta", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale",
    "mscale_all_dim", "llama_4_scaling_beta",
)  # fmt: skip
ROPE_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "rope_type": ("yarn",),
    "attention_factor": (None,),
    "truncate": (True,),
    "partial_rotary_factor": (1,),
}
"""Keys inside `rope_parameters`."""


def read_nemotron(config: Mapping[str, Any]) -> BackboneConfig:
    """YaRN with queries scaled by position, and an LM head of its own."""
    require(config, NEMOTRON_SHAPE)
    refuse(config, NEMOTRON_SUPPORTED)
    rope = config["rope_parameters"]
    require(rope, ROPE_SHAPE)
    refuse(rope, ROPE_SUPPORTED)
    return BackboneConfig(
        **read_shape(config),
        intermediate_size=config["intermediate_size"],
        rope_theta=rope["rope_theta"],
        attention="causal_context",
        block_length=config["block_size"],
        yarn=YarnConfig(
            factor=rope["factor"],
            original_positions=rope["original_max_position_embeddings"],
            beta_fast=rope["beta_fast"],
            beta_slow=rope["beta_slow"],
            mscale=rope["mscale"],
            mscale_all_dim=rope["mscale_all_dim"],
            query_beta=rope["llama_4_scaling_beta"],
        ),
    )


def write_nemotron(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """A config.json with the keys of the released ones."""
    yarn = config.yarn
    assert yarn is not None  # models of this family have it
    return {
        "model_type": "nemotron_labs_diffusion",
        "architectures": ["NemotronLabsDiffusionModel"],
        **{key: values[0] for key, values in NEMOTRON_SUPPORTED.items()},
        **write_shape(config),
        "intermediate_size": config.intermediate_size,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": config.rope_theta,
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_positions,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
            "llama_4_scaling_beta": yarn.query_beta,
        },
        "block_size": config.block_length,
        "dlm_paradigm": "bidirectional",
        "mask_token_id": special.mask_id,
        "bos_token_id": 1,
        "eos_token_id": special.eos_id,
    }


def weights_nemotron(config: BackboneConfig) -> dict[str, list[WeightPart]]:
    """Backbone parameter -> tensors of Llama's names under `encoder`, and `diffusion_head`."""
    return llama_weights(config, "encoder", "diffusion_head")


NEMOTRON = Family(
    name="nemotron",
    architectures=("NemotronLabsDiffusionModel",),
    default_algorithm="nemotron",
    algorithms=("nemotron", "ar", "linear_spec"),
    turn_end="<|im_end|>",
    read_config=read_nemotron,
    write_config=write_nemotron,
    read_special=read_ids,
    weights=weights_nemotron,
    block_length=32,
)
