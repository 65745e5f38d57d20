"""Nemotron-Labs-Diffusion: nvidia/Nemotron-Labs-Diffusion-3B, -8B and -14B, in the layout of Ministral 3.

No released file was at hand when this was written: keys and tensor names are those that several public programs read
from the released checkpoints, and the forward is held to the causal Ministral 3 of transformers. The instruct
repositories hold a LoRA adapter for drafting in `linear_spec_lora` (rank 128, of each layer's `o_proj`);
`model.drafter_adapter_path` reads it.
"""

from __future__ import annotations

from typing import Any

from dlm.models.architecture import BackboneConfig
from dlm.models.families.base import Family, SpecialTokens, WeightPart
from dlm.models.families.common import (
    BLOCK,
    END_IDS,
    HEAD_DIM,
    IGNORED,
    SHARED_KEYS,
    TOKEN_ID,
    UNSUPPORTED,
    WIDTH,
    ids_within,
)
from dlm.models.families.keys import Key, Schema, Values, fixed, written
from dlm.models.families.layout import SHAPE, heads_fit, llama_weights, read_shape, write_shape
from dlm.models.families.rope import rope_keys, rope_stated, write_yarn

NEMOTRON_FIXED = (
    fixed("hidden_act", "silu"),
    fixed("attention_bias", False),
    fixed("mlp_bias", False),
    fixed("sliding_window", None),
    fixed("dlm_paradigm", "bidirectional"),
)
NEMOTRON_KEYS = Schema(
    (
        *(key for key in SHAPE if key.name != "tie_word_embeddings"),
        fixed("tie_word_embeddings", False, optional=False),
        Key("head_dim", HEAD_DIM),
        Key("intermediate_size", WIDTH),
        Key("block_size", BLOCK),
        Key("mask_token_id", TOKEN_ID),
        Key("eos_token_id", END_IDS, nullable=True),
        *rope_keys(scaled_queries=True),
        *NEMOTRON_FIXED,
        *SHARED_KEYS,
    ),
    ignored=IGNORED | {"ar_loss_weight", "dlm_loss_weight", "dp_varying_mask_ratio"},
    unsupported=UNSUPPORTED,
    owner="nemotron models",
)


def build_nemotron(values: Values) -> BackboneConfig:
    """YaRN with queries scaled by position, and an LM head of its own."""
    return BackboneConfig(
        **read_shape(values),
        intermediate_size=values["intermediate_size"],
        attention="causal_context",
        block_length=values["block_size"],
    )


def write_nemotron(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """A config.json with the keys of the released ones."""
    yarn = config.yarn
    assert yarn is not None  # models of this family have it
    return {
        "model_type": "nemotron_labs_diffusion",
        "architectures": ["NemotronLabsDiffusionModel"],
        **written(NEMOTRON_FIXED),
        **write_shape(config),
        "intermediate_size": config.intermediate_size,
        "rope_parameters": {
            **write_yarn(yarn),
            "rope_theta": config.rope_theta,
            "llama_4_scaling_beta": yarn.query_beta,
        },
        "block_size": config.block_length,
        "mask_token_id": special.mask_id,
        "bos_token_id": 1,
        "eos_token_id": special.named_eos,
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
    schema=NEMOTRON_KEYS,
    relations=(heads_fit(), rope_stated(), ids_within("vocab_size")),
    build=build_nemotron,
    write_config=write_nemotron,
    weights=weights_nemotron,
    block_length=32,
)
