"""What a config.json may say: released ones load, and what is not supported is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm.errors import CheckpointError
from dlm.models.architecture import YarnConfig
from dlm.models.families import SpecialTokens, family_of
from dlm.models.families.common import IGNORED, UNSUPPORTED
from dlm.models.io.loading import read_checkpoint_config
from dlm.models.rotary import Rotary
from tests.models.configs import CONFIGS, NAMES, SPECIAL, family_named, read, refusal, write

TOP_LEVEL = [name for name in NAMES if name != "nemotron"]
"""Families whose released files have the rotary embedding at the top level."""

QWEN_LIKE = ("dream", "llada2", "llada_moe", "sdar")
"""Families whose config names its positions as transformers does, which stretches no other."""


def test_llada2_as_released_is_read() -> None:
    """Its files leave out `use_qk_norm`, the mask and the ends; query and key are normed."""
    released = read("llada2", "use_qk_norm", "mask_token_id", "eos_token_id", model_type="llada2_moe_veomni")
    assert released == read("llada2")
    assert released.qk_norm
    assert "use_qk_norm=False must be True" in refusal("llada2", use_qk_norm=False)
    silent = read("llada2", "partial_rotary_factor")
    assert silent.rotary_dim == 8
    assert "lacks partial_rotary_factor" in refusal("llada2", "partial_rotary_factor", "rotary_dim")


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_rope_parameters_are_read_in_every_family(name: str) -> None:
    """As transformers 5 writes them: alone, beside a default of the class, and by the names of earlier versions."""
    base, theta = read(name), {"rope_theta": 123456.0}
    new = {"rope_type": "default", **theta}
    if name == "llada2":
        new["partial_rotary_factor"] = 0.5
    expected = replace(base, rope_theta=123456.0)
    assert read(name, "rope_theta", "rope_scaling", "partial_rotary_factor", rope_parameters=new) == expected
    assert read(name, rope_theta=10000.0, rope_parameters=new) == expected
    assert read(name, rope_theta=123456.0, rope_scaling={"rope_type": "default"}) == expected
    assert read(name, rope_theta=123456.0, rope_scaling={"type": "default"}, rope_parameters={}) == expected
    assert read(name, "rope_theta", rope_scaling=new, rope_parameters=new) == expected
    assert "lacks rope_theta" in refusal(name, "rope_theta")
    assert "lacks rope_theta" in refusal(name, "rope_theta", rope_parameters={"rope_type": "default"})


@pytest.mark.parametrize("name", TOP_LEVEL)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_yarn_is_read_and_written_back(name: str, key: str) -> None:
    table = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    yarn = YarnConfig(factor=4.0, original_positions=64, mscale=1.0, mscale_all_dim=0.0)
    config = read(name, **{key: table})
    assert config == replace(read(name), yarn=yarn)
    family = family_named(name)
    assert family.read_config(family.write_config(config, SPECIAL)) == config
    both = {**table, "factor": None, "mscale": 0.707, "mscale_all_dim": 0.5, "beta_fast": 16, "truncate": True}
    config = read(name, **{key: both})
    assert config.yarn == YarnConfig(512 / 64, 64, beta_fast=16, mscale=0.707, mscale_all_dim=0.5)
    assert family.read_config(family.write_config(config, SPECIAL)) == config


@pytest.mark.parametrize(
    "table",
    [
        {"factor": 4.0, "original_max_position_embeddings": 64},
        {"factor": 8.0},
        {"factor": 16.0, "original_max_position_embeddings": 32, "beta_fast": 8, "beta_slow": 2},
        {"factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.707, "mscale_all_dim": 0.5},
        {"factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.707},
    ],
)
def test_yarn_is_that_of_transformers(table: dict[str, Any]) -> None:
    from transformers import Qwen3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stated = {"rope_type": "yarn", "rope_theta": 10000.0, **table}
    theirs = Qwen3Config(
        hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=512, rope_parameters=dict(stated)
    )
    frequency, magnitude = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    rotary = Rotary(read("sdar", rope_parameters=stated))
    angle = torch.outer(torch.arange(512, dtype=torch.float32), frequency)
    torch.testing.assert_close(rotary.cos, angle.cos() * magnitude, atol=2e-4, rtol=0)
    torch.testing.assert_close(rotary.sin, angle.sin() * magnitude, atol=2e-4, rtol=0)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rope_type": "linear", "factor": 2.0}, "{key}.rope_type='linear' must be 'default' or 'yarn'"),
        ({"type": "dynamic", "factor": 2.0}, "{key}.rope_type='dynamic' must be"),
        ({"rope_type": "default", "factor": 2.0}, "{key}.factor=2.0 is not supported: it has a meaning with"),
        ({"rope_type": "yarn", "type": "default"}, "{key}.rope_type='yarn' and {key}.type='default' must be the same"),
        ({"rope_type": "yarn"}, "lacks {key}.factor"),
        ({"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5}, "{key}.attention_factor=1.5 is not supported"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": False}, "{key}.truncate=False must be True"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}, "{key}.beta_fast=0.5 must be at least beta_slow=1"),
        ({"partial_rotary_factor": 0.5}, "{key}.partial_rotary_factor=0.5 must be 1"),
        ({"full_attention": {"rope_type": "default"}}, "{key}.'full_attention'={{'rope_type': 'default'}} is not a"),
        ("yarn", "{key}='yarn' must be an object"),
    ],
)  # fmt: skip
def test_rotary_embeddings_that_are_not_supported_are_refused_by_name(key: str, table: Any, message: str) -> None:
    assert message.format(key=key) in refusal("sdar", **{key: table})


def test_two_rotary_tables_must_agree() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    told = refusal("sdar", rope_scaling={"rope_type": "default"}, rope_parameters=yarn)
    assert "rope_scaling.rope_type='default' and rope_parameters.rope_type='yarn' must be the same" in told
    told = refusal("sdar", rope_scaling=yarn, rope_parameters={**yarn, "factor": 2.0})
    assert "rope_scaling.factor=4.0 and rope_parameters.factor=2.0" in told


def test_null_stands_for_the_rule_of_the_class() -> None:
    assert read("llada", n_kv_heads=None) == read("llada")
    assert read("llada", embedding_size=None) == read("llada")
    assert read("llada", mlp_hidden_size=None, mlp_ratio=3).intermediate_size == 192
    assert "mlp_hidden_size=null" in refusal("llada", "mlp_ratio", mlp_hidden_size=None)
    assert read("dream", num_key_value_heads=None).num_kv_heads == 4
    assert read("dream", head_dim=None).head_dim == 16
    assert read("llada2", num_shared_experts=None).experts.shared_size == 0  # type: ignore[union-attr]
    assert "d_model=null must be an integer from 1" in refusal("llada", d_model=None)


@pytest.mark.parametrize("name", NAMES)
def test_every_id_of_a_list_of_ends_ends_an_answer(name: str, tmp_path: Path) -> None:
    config = {**CONFIGS[name], "mask_token_id": 511, "eos_token_id": [9, 5]}
    special = read_checkpoint_config(write(tmp_path, config)).special
    assert (special.eos_id, special.end_ids) == (9, (9, 5))
    family = family_of(config)
    assert family.read_special(family.write_config(read(name), special)).eos_ids == (9, 5)
    one = {**config, "eos_token_id": [9]}
    assert read_checkpoint_config(write(tmp_path, one)).special == SpecialTokens(511, 9)
    null = {**config, "eos_token_id": None}
    assert read_checkpoint_config(write(tmp_path, null)).special == SpecialTokens(511, None)


def test_ids_that_the_tokenizer_names_are_checked_too(tmp_path: Path) -> None:
    write(tmp_path, CONFIGS["llada2"])
    for found, message in [
        (10**9, r"special ids \[1000000000\] are outside the vocabulary of 512"),
        (-1, r"special ids \[-1\]"),
        ("7", "the id '7', not a number"),
        (True, "the id True, not a number"),
        (None, "the id None, not a number"),
    ]:
        (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": "<|mask|>", "id": found}]}))
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint_config(tmp_path)
    for tokens in (5, {"a": 1}, [5], [None]):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
        with pytest.raises(CheckpointError, match=r"added_tokens is .*, not a list of objects"):
            read_checkpoint_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"special ids \[600\] are outside the vocabulary of 512"):
        read_checkpoint_config(tmp_path, SpecialTokens(600, 5))


@pytest.mark.parametrize("name", NAMES)
def test_what_transformers_writes_of_itself_is_ignored(name: str) -> None:
    """All that `PreTrainedConfig` has of its own, and the defaults of generation that earlier versions wrote."""
    from transformers import GenerationConfig, PretrainedConfig

    own = PretrainedConfig(architectures=CONFIGS[name]["architectures"]).to_dict()
    generation = GenerationConfig._get_default_generation_params()
    assert read(name, **{**generation, **own, "architectures": CONFIGS[name]["architectures"]}) == read(name)
    for key in IGNORED - {"architectures"}:
        for value in (None, 7, "x", [1], {"a": 1}, float("nan")):
            assert read(name, **{key: value}) == read(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_released_file_saved_again_by_transformers_is_the_same_model(name: str, tmp_path: Path) -> None:
    """Through a class as the released ones are: it keeps what it is given, and transformers adds and moves keys."""
    from transformers import PretrainedConfig

    class Released(PretrainedConfig):
        model_type = "released"

        def __init__(self, **given: Any) -> None:
            inherited = {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "model_type"}
            for key in given.keys() - inherited - {"rope_scaling", "rope_parameters"}:
                setattr(self, key, given[key])
            self.rope_parameters = given.get("rope_parameters") or given.get("rope_scaling")
            super().__init__(**{key: given[key] for key in given.keys() & inherited})

    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    for changes in ({}, {"rope_scaling": yarn} if name in QWEN_LIKE else {}):
        saved = Released(**{**CONFIGS[name], **changes})
        saved.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["rope_parameters"]["rope_theta"] == read(name).rope_theta
        for config in (written, saved.to_dict()):
            assert family_of(config).read_config(config) == read(name, **changes)


def test_files_written_by_transformers_5_are_read(tmp_path: Path) -> None:
    """The config class of a released model, saved: its own keys, `rope_parameters`, `layer_types` and `dtype`."""
    from transformers import Qwen3Config

    theirs = Qwen3Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, architectures=["SDARForCausalLM"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False, eos_token_id=[9, 5],
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    (tmp_path / "full").mkdir()
    theirs.to_json_file(tmp_path / "full" / "config.json", use_diff=False)
    for folder in (tmp_path, tmp_path / "full"):
        assert read_checkpoint_config(folder, SPECIAL).backbone == read("sdar")
    assert read_checkpoint_config(tmp_path, SPECIAL).dtype == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_a_key_that_nobody_knows_is_refused_by_name(name: str) -> None:
    assert f"'logit_scale'=2.0 is not a key that {name} models are known to have" in refusal(name, logit_scale=2.0)
    for key in UNSUPPORTED:
        assert f"{key}={{'bits': 4}} is not supported: " in refusal(name, **{key: {"bits": 4}})
        assert read(name, **{key: None}) == read(name)


@pytest.mark.parametrize("key", ["expert_capacity", "block_size", "delete_token_id", "split_token_id"])
def test_llada22_is_refused_by_what_it_adds(key: str) -> None:
    assert f"{key}=48 is not supported: it belongs to LLaDA2.2" in refusal("llada2", **{key: 48})
    assert read("llada2", **{key: None}) == read("llada2")


def test_windows_and_biases_that_are_not_supported_are_refused() -> None:
    for name in ("dream", "sdar", "llada2"):
        assert "use_sliding_window=True must be False" in refusal(name, use_sliding_window=True)
        assert read(name, sliding_window=4096, max_window_layers=28, use_sliding_window=False) == read(name)
    assert "layer_types=['full_attention', 'sliding_attention'] must be" in refusal(
        "sdar", layer_types=["full_attention", "sliding_attention"]
    )
    assert "sliding_window=4096 must be None" in refusal("nemotron", sliding_window=4096)
    assert "attention_bias=False must be True" in refusal("dream", attention_bias=False)
    assert read("dream", attention_bias=True) == read("dream")
    assert "dlm_paradigm='autoregressive' must be 'bidirectional'" in refusal("nemotron", dlm_paradigm="autoregressive")
    assert read("sdar", tie_word_embeddings=True).tie_embeddings


@pytest.mark.parametrize(
    "named",
    ["SDARForCausalLM", ["SDARMoeForCausalLM"], ["DreamForCausalLM", "Fast_dLLM_QwenForCausalLM"], [], [["a"]], {}, 5],
)  # fmt: skip
def test_another_architecture_is_refused_with_the_list_of_families(named: Any, tmp_path: Path) -> None:
    write(tmp_path, {**CONFIGS["sdar"], "architectures": named})
    with pytest.raises(
        CheckpointError, match=r"config.json names architectures=.*supported families: llada \(LLaDAModelLM\)"
    ):
        read_checkpoint_config(tmp_path)
