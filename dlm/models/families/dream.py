"""Dream: Dream-org/Dream-v0-Base-7B and -Instruct-7B (arXiv 2508.15487), in the layout of Qwen2.5."""

from __future__ import annotations

from typing import Any

from dlm.models.architecture import BackboneConfig
from dlm.models.families.base import Family, SpecialTokens
from dlm.models.families.common import END_IDS, IGNORED, SHARED_KEYS, TOKEN_ID, UNSUPPORTED, WIDTH, ids_within
from dlm.models.families.keys import Key, Schema, Values, fixed, written
from dlm.models.families.layout import (
    FREE_HEAD_DIM,
    SHAPE,
    WITHOUT_WINDOWS,
    heads_fit,
    llama_weights,
    read_shape,
    write_shape,
)
from dlm.models.families.rope import rope_keys, rope_stated, write_rope

DREAM_FIXED = (fixed("hidden_act", "silu"), fixed("use_sliding_window", False), fixed("use_mrope", False))
DREAM_KEYS = Schema(
    (
        *SHAPE,
        FREE_HEAD_DIM,
        Key("intermediate_size", WIDTH),
        Key("mask_token_id", TOKEN_ID),
        Key("eos_token_id", END_IDS, nullable=True),
        *rope_keys(),
        *DREAM_FIXED,
        fixed("attention_bias", True),
        *SHARED_KEYS,
    ),
    ignored=IGNORED | WITHOUT_WINDOWS,
    unsupported=UNSUPPORTED,
    owner="dream models",
)


def build_dream(values: Values) -> BackboneConfig:
    """Biases on query, key and value; row i of the logits predicts position i + 1."""
    return BackboneConfig(
        **read_shape(values),
        intermediate_size=values["intermediate_size"],
        qkv_bias=True,
        shifted=True,
    )


def write_dream(config: BackboneConfig, special: SpecialTokens) -> dict[str, Any]:
    """The config.json that the released program reads."""
    return {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        **written(DREAM_FIXED),
        **write_shape(config),
        **write_rope(config),
        "intermediate_size": config.intermediate_size,
        "sliding_window": None,
        "max_window_layers": config.num_layers,
        "mask_token_id": special.mask_id,
        "eos_token_id": special.named_eos,
        "bos_token_id": special.eos_id,
        "pad_token_id": special.eos_id,
    }


DREAM = Family(
    name="dream",
    architectures=("DreamModel",),
    default_algorithm="dream",
    algorithms=("dream", "fastdllm_dream", "basic", "prefix_cache", "dual_cache"),
    turn_end="<|im_end|>",
    schema=DREAM_KEYS,
    relations=(heads_fit(), rope_stated(), ids_within("vocab_size")),
    build=build_dream,
    write_config=write_dream,
    weights=llama_weights,
)
