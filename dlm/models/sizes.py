"""Shapes of random models to choose from; torch-free, so that `--help` can list them."""

from __future__ import annotations

from dataclasses import replace

from dlm.models.architecture import BackboneConfig, ExpertsConfig, YarnConfig


def _dense(
    hidden: int, inner: int, layers: int, heads: int, vocab: int = 126464, positions: int = 4096
) -> BackboneConfig:
    return BackboneConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        max_positions=positions,
    )


_TINY = replace(_dense(64, 128, 2, 4, 1024, 1024), full_precision_rope=False)
_TINY_GROUPED = replace(_TINY, num_kv_heads=2, rms_norm_eps=1e-6)
_LLADA_MOE = replace(
    _dense(2048, 1024, 16, 16, 157184, 8192),
    rope_theta=50000.0,
    full_precision_rope=False,
    qk_norm=True,
    experts=ExpertsConfig(num_experts=64, top_k=8, inner_size=1024),
)
_LLADA2 = replace(
    _dense(2048, 5120, 20, 16, 157184, 32768),
    num_kv_heads=4,
    rms_norm_eps=1e-6,
    rope_theta=600000.0,
    full_precision_rope=False,
    qk_norm=True,
    rotary_dim=64,
    attention="block_causal",
    block_length=32,
    experts=ExpertsConfig(
        num_experts=256, top_k=8, inner_size=512, first_layer=1, scores="sigmoid", normalize=True, scaling=2.5,
        groups=8, top_groups=4, choice_bias=True, shared_size=512,
    ),
)  # fmt: skip
_TINY_LLADA2_EXPERTS = ExpertsConfig(
    num_experts=8, top_k=2, inner_size=32, first_layer=1, scores="sigmoid", normalize=True, scaling=2.5,
    groups=4, top_groups=2, choice_bias=True, shared_size=32,
)  # fmt: skip

SIZES_BY_FAMILY: dict[str, dict[str, BackboneConfig]] = {
    "llada": {
        "tiny": _dense(64, 192, 2, 4, 1024, 1024),
        "small": _dense(256, 768, 4, 8, 1024, 2048),
        "57m": _dense(640, 1920, 11, 10),
        "300m": _dense(1024, 3072, 22, 16),
        "1b": _dense(2048, 6144, 18, 16),
        "8b": _dense(4096, 12288, 32, 32),
    },
    "llada_moe": {
        "tiny_moe": replace(_TINY, qk_norm=True, experts=ExpertsConfig(num_experts=8, top_k=2, inner_size=32)),
        "7b_moe": _LLADA_MOE,
    },
    "llada2": {
        "tiny_llada2": replace(
            _TINY_GROUPED,
            qk_norm=True,
            rotary_dim=8,
            attention="block_causal",
            block_length=32,
            experts=_TINY_LLADA2_EXPERTS,
        ),
        "16b_llada2": _LLADA2,
    },
    "dream": {
        "tiny_dream": replace(_TINY_GROUPED, rope_theta=1e6, qkv_bias=True, shifted=True),
        "7b_dream": replace(
            _dense(3584, 18944, 28, 28, 152064, 32768),
            num_kv_heads=4,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            full_precision_rope=False,
            qkv_bias=True,
            shifted=True,
        ),
    },
    "sdar": {
        "tiny_sdar": replace(_TINY_GROUPED, rope_theta=1e6, qk_norm=True, attention="block_causal", block_length=4),
        "57m_sdar": replace(_dense(640, 1920, 11, 10), qk_norm=True, attention="block_causal", block_length=32),
    },
    "nemotron": {
        "tiny_nemotron": replace(
            _TINY,
            num_kv_heads=2,
            rope_theta=1e6,
            attention="causal_context",
            block_length=8,
            yarn=YarnConfig(factor=4.0, original_positions=256, query_beta=0.1),
        )
    },
}
"""By family and name. `57m` and `57m_sdar` have bodies of 59 million parameters and LLaDA's vocabulary, `300m` one of
300 million; `8b`, `7b_moe`, `16b_llada2` and `7b_dream` are the shapes of LLaDA-8B, LLaDA-MoE-7B-A1B, LLaDA2.0-mini and
Dream-7B."""

SIZES: dict[str, BackboneConfig] = {name: size for sizes in SIZES_BY_FAMILY.values() for name, size in sizes.items()}
"""The same by name alone."""


def family_of_size(name: str) -> str:
    """Name of the family to which the named size belongs; `KeyError` for a name that is not in `SIZES`."""
    for family, sizes in SIZES_BY_FAMILY.items():
        if name in sizes:
            return family
    raise KeyError(name)
