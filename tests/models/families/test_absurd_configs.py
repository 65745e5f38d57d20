"""Absurd values in a config.json: each ends in a model that computes, or in an error that names file and key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dlm._quoting import quoted
from dlm.errors import CheckpointError
from dlm.models.architecture import BackboneConfig
from dlm.models.families import FAMILIES, family_of
from dlm.models.families.rope import WHOLE, RopeTable
from dlm.models.io.loading import load_checkpoint, read_checkpoint_config
from dlm.models.rotary import Rotary
from tests.models.attention.windows import logits_of
from tests.models.configs import CONFIGS, NAMES, SPECIAL, family_named, read, refusal, weights_of, write

ABSURD: tuple[Any, ...] = (
    None, [], [1], {}, {"a": 1}, "", "4", "silu", True, False, float("nan"), float("inf"), float("-inf"), -1, -0.5, 0,
    0.0, 1, 3, 4.0, 1e-310, 5e-324, 1e308, 10**400, 10**9, 10**7, 2**63, [[[[1]]]], ["a"] * 5000,
    {"x": {}}, "\ud800\x1b[3m",
)  # fmt: skip

AGAINST_WEIGHTS = ("tensors", "has shape", "config.json ties", "the vocabulary of")
"""What is said of a value that is possible, and not that of the weights or the ids beside it."""


def test_every_family_is_looked_at() -> None:
    assert set(NAMES) == {family.name for family in FAMILIES}
    for name in NAMES:
        assert read(name).num_layers == 2


def keys_of(name: str) -> Iterator[str]:
    """Every key that a family reads, that its file has, or that it refuses by name, and one that nobody knows."""
    schema = family_named(name).schema
    yield from dict.fromkeys((*(key.name for key in schema.keys), *CONFIGS[name], *(schema.unsupported or ())))
    yield "no_such_key"


def attempt(folder: Path, base: BackboneConfig) -> str | None:
    """Load and run the model of a folder unless it is `base`, which is known to; what it is refused with, if it is."""
    try:
        found = read_checkpoint_config(folder, SPECIAL).backbone
        if found != base:
            tokens = torch.arange(min(8, found.max_positions)).unsqueeze(0)
            assert logits_of(load_checkpoint(folder, special=SPECIAL).backbone, tokens).isfinite().all(), found
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_any_value_of_any_key_ends_in_a_model_that_computes_or_an_error_that_names_it(
    name: str, tmp_path: Path
) -> None:
    """The whole table: with every key absurd in every way the file is refused, or the model is loaded and run."""
    base, folder = read(name), weights_of(name, tmp_path / "model")
    refused = loaded = 0
    for key in keys_of(name):
        for value in ABSURD:
            told = attempt(write(folder, {**CONFIGS[name], key: value}), base)
            refused, loaded = refused + (told is not None), loaded + (told is None)
            if told is not None:
                assert str(folder) in told, (key, value)
                assert key in told or any(text in told for text in AGAINST_WEIGHTS), (key, value, told)
                assert len(told) < 4000
                assert told.replace("\n", "").isprintable()
    assert min(refused, loaded) > 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(ABSURD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_any_object_is_read_or_refused(data: st.DataObject, name: str) -> None:
    keys = st.sampled_from(sorted(keys_of(name))) | st.text()
    changes = data.draw(st.dictionaries(keys, JSON, max_size=6))
    config = {**CONFIGS[name], **changes, "architectures": CONFIGS[name]["architectures"]}
    try:
        found = family_of(config, "a/config.json").read_config(config, "a/config.json")
    except CheckpointError as error:
        told = str(error)
    else:
        told = f"a/config.json does not describe a {name} model"
        assert found.num_layers <= 512
        assert found.max_positions * found.head_dim <= 2**28
    assert told.startswith(f"a/config.json does not describe a {name} model")
    assert len(told) < 8000


NESTED = ("rope_type", "type", *(key.name for key in RopeTable(WHOLE, scaled_queries=True).schemas["yarn"].keys))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("table", ["rope_parameters", "rope_scaling"])
def test_any_value_inside_the_rotary_tables_is_read_or_refused_by_name(name: str, table: str) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    if name == "nemotron":
        yarn["llama_4_scaling_beta"] = 0.1
    base = {**CONFIGS[name], "rope_parameters": yarn} if name == "nemotron" else CONFIGS[name]
    for key in (*NESTED, "attention_factor", "no_such_key"):
        for value in ABSURD:
            config = {**base, table: {**yarn, key: value}}
            try:
                rotary = Rotary(replace(family_of(config).read_config(config), max_positions=16))
            except CheckpointError as error:
                told = str(error)
            else:
                told = f"{table}.{key}"
                assert rotary.cos.isfinite().all(), (key, value)
                assert rotary.sin.isfinite().all(), (key, value)
            assert key in told or f"{table}.rope_type" in told, (key, value)


@pytest.mark.parametrize("name", NAMES)
def test_all_faults_of_a_file_are_told_at_once_and_cut(name: str) -> None:
    told = refusal(name, "rms_norm_eps", mask_token_id="x", foreign_1=1, **{"x" * 500: "y" * 500})
    assert told.startswith(f"config.json does not describe a {name} model that can be loaded:\n  lacks rms_norm_eps;")
    assert "mask_token_id='x' must be an integer from 0" in told
    assert "'foreign_1'=1 is not a key" in told
    assert "x" * 100 not in told
    assert "y" * 100 not in told
    many = refusal(name, **{f"foreign_{index}": index for index in range(500)})
    assert many.endswith("and 488 more")
    assert len(many) < 3000
    told = refusal(name, **{f"foreign_{index}": index for index in range(2000)})
    assert "keys; it must have at most 1000" in told


def test_a_value_is_quoted_on_one_line_and_cut() -> None:
    assert quoted("a\nb\x1b[31m\u202e\ud800") == repr("a\nb\x1b[31m\u202e\ud800")
    assert quoted(10**400) == "an integer of 1329 bits"
    assert quoted(-(10**5000)) == "an integer of 16610 bits"
    assert len(quoted([["z" * 1000] * 1000] * 1000)) < 130
    assert quoted(4.0) == "4.0"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [10**400, 10**9, 10**7, 512])
def test_a_number_of_layers_that_the_weights_do_not_have_is_refused_before_any_is_built(
    name: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "n_layers" if name == "llada" else "num_hidden_layers"
    changes: dict[str, Any] = {key: value, "moe_layer_freq": 1} if name == "llada_moe" else {key: value}
    folder = write(weights_of(name, tmp_path / "model"), {**CONFIGS[name], **changes})
    monkeypatch.setattr("dlm.models.io.naming.Backbone", lambda config: pytest.fail("a model was built"))
    with pytest.raises(CheckpointError, match=f"{key}=|holds .* tensors, and the {name} model of 512 layers"):
        load_checkpoint(folder, special=SPECIAL)


@pytest.mark.parametrize("name", ["llada_moe", "llada2"])
def test_a_number_of_experts_that_the_weights_do_not_have_is_refused_before_any_is_built(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(weights_of(name, tmp_path / "model"), {**CONFIGS[name], "num_experts": 4096})
    monkeypatch.setattr("dlm.models.io.naming.Backbone", lambda config: pytest.fail("a model was built"))
    with pytest.raises(CheckpointError, match="they are not of one model"):
        load_checkpoint(folder, special=SPECIAL)
    many = {"num_experts": 4096, "num_hidden_layers": 512, "moe_layer_freq": 1}
    assert "num_experts=4096 times num_hidden_layers=512 must be at most" in refusal(
        name, **{key: many[key] for key in many if key in CONFIGS[name]}
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_count_of_tensors_is_that_of_the_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted before anything is built is what would be built."""
    folder = write(weights_of(name, tmp_path / "model"), CONFIGS[name])
    family, total = family_named(name), len(load_file(folder / "model.safetensors"))
    save_file({"other": torch.ones(2)}, folder / "model.safetensors")
    monkeypatch.setattr("dlm.models.io.naming.FEW_TENSORS", 0)
    with pytest.raises(CheckpointError, match=f"holds 1 tensors, and the {family.name} model .* has {total}: they are"):
        load_checkpoint(folder, special=SPECIAL)


def test_positions_that_would_fill_the_memory_with_tables_are_refused() -> None:
    told = refusal("dream", max_position_embeddings=2**22, head_dim=256)
    assert "max_position_embeddings=4194304 times 256 rotated dimensions must be at most 268435456" in told
    assert read("dream", max_position_embeddings=2**20).max_positions == 2**20


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llada", {"n_heads": 64}, "d_model=64 and n_heads=64 make 1 rotated dimensions"),
        ("llada", {"n_heads": 128}, "d_model=64 must divide by n_heads=128"),
        ("llada", {"n_kv_heads": 3}, "must divide by n_heads=4, and that by n_kv_heads=3"),
        ("llada", {"multi_query_attention": False, "n_kv_heads": 2}, "multi_query_attention=False and n_kv_heads=2"),
        ("llada", {"n_layers": True}, "n_layers=True must be an integer from 1 to 512"),
        ("llada", {"n_layers": 4.0}, "n_layers=4.0 must be an integer"),
        ("llada", {"n_layers": "4"}, "n_layers='4' must be an integer"),
        ("llada", {"rope": 1}, "rope=1 must be True"),
        ("llada", {"block_group_size": True}, "block_group_size=True must be 1"),
        ("llada", {"weight_tying": 1}, "weight_tying=1 must be true or false"),
        ("dream", {"hidden_size": 66}, "hidden_size=66 must divide by num_attention_heads=4"),
        ("sdar", {"head_dim": 17}, "head_dim=17 make 17 rotated dimensions of a head; it must be an even number"),
        ("sdar", {"num_key_value_heads": 8}, "num_attention_heads=4 must divide by num_key_value_heads=8"),
        ("llada2", {"rotary_dim": 4}, "rotary_dim=4 must be head_dim=16 times partial_rotary_factor=0.5"),
        ("llada2", {"partial_rotary_factor": 0.2}, "rotary_dim=8 must be head_dim=16"),
        ("llada2", {"topk_group": 5}, "topk_group=5 must be at most n_group=4"),
        ("llada2", {"num_experts_per_tok": 5}, "num_experts_per_tok=5 must be at most what topk_group=2 groups hold"),
        ("llada_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok=9 must be at most num_experts=8"),
        ("dream", {"mask_token_id": 512}, "mask_token_id=512 must be below vocab_size=512"),
        ("dream", {"eos_token_id": [1, 5, 600]}, "eos_token_id=600 must be below vocab_size=512"),
        ("llada", {"embedding_size": 128}, "mask_token_id=511 must be below embedding_size=128"),
        ("dream", {"eos_token_id": [1, 511]}, r"mask_token_id=511 must not be among eos_token_id=\[1, 511\]"),
        ("dream", {"eos_token_id": []}, r"eos_token_id=\[\] must be an integer from 0"),
        ("dream", {"eos_token_id": [True]}, r"eos_token_id=\[True\] must be an integer from 0"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_go_together_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(name, **changes)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e4m3fn])
def test_weights_that_are_codes_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write(weights_of("sdar", tmp_path / "model"), CONFIGS["sdar"])
    path = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match=r"is stored as .*; quantised weights are not read"):
        load_checkpoint(folder, special=SPECIAL)
