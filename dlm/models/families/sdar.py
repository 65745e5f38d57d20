"""SDAR: JetLM/SDAR-8B-Chat and its kin (arXiv 2510.06303), in the layout of Qwen3."""

from __future__ import annotations

from typing import Any

from dlm.models.architecture import BackboneConfig
from dlm.models.families.base import BLOCK_CAUSAL, Family, SpecialTokens
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
from dlm.models.families.layout import SHAPE, WITHOUT_WINDOWS, heads_fit, llama_weights, read_shape, write_shape
from dlm.models.families.rope import rope_keys, rope_stated, write_rope

BLOCK_LENGTH = 4
SDAR_FIXED = (
    fixed("hidden_act", "silu"),
    fixed("attention_bias", False, optional=False),
    fixed("use_sliding_window", False),
)
SDAR_KEYS = Schema(
    (
        *SHAPE,
        Key("head_dim", HEAD_DIM),
        Key("intermediate_size", WIDTH),
        Key("block_size", BLOCK, optional=True, default=BLOCK_LENGTH),
        Key("mask_token_id", TOKEN_ID, optional=True),
        Key("eos_token_id", END_IDS, optional=True),
        *rope_keys(),
        *SDAR_FIXED,
        *SHARED_KEYS,
    ),
    ignored=IGNORED
    | WITHOUT_WINDOWS
    | {"debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep"},
    unsupported=UNSUPPORTED,
    owner="sdar models",
)


def build_sdar(values: Values) -> BackboneConfig:
    """Heads of query and key are normed; `block_size` is the native block, 4 where the config leaves it out."""
    return BackboneConfig(
        **read_shape(values),
        intermediate_size=values["intermediate_size"],
        qk_norm=True,
        attention="block_causal",
        block_length=values["block_size"],
    )


def write_sdar(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """The config.json that the released program reads."""
    return {
        "model_type": "sdar",
        "architectures": ["SDARForCausalLM"],
        **written(SDAR_FIXED),
        **write_shape(config),
        **write_rope(config),
        "intermediate_size": config.intermediate_size,
        "block_size": config.block_length,
        "sliding_window": None,
        "max_window_layers": config.num_layers,
        "mask_token_id": special.mask_id,
        "eos_token_id": special.named_eos,
        "bos_token_id": special.eos_id,
        "pad_token_id": special.eos_id,
    }


SDAR = Family(
    name="sdar",
    architectures=("SDARForCausalLM",),
    default_algorithm="sdar",
    algorithms=("sdar", *BLOCK_CAUSAL),
    turn_end="<|im_end|>",
    schema=SDAR_KEYS,
    relations=(heads_fit(), rope_stated(), ids_within("vocab_size")),
    build=build_sdar,
    write_config=write_sdar,
    weights=llama_weights,
    mask_text="<|MASK|>",
    eos_text="<|endoftext|>",
    block_length=BLOCK_LENGTH,
)
