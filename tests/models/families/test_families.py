"""Every family: the logits of the programs that published it, its config, its tensors, and bitwise row invariance."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dlm.errors import CheckpointError
from dlm.models.families import FAMILIES, NEMOTRON, SpecialTokens, family_of
from dlm.models.io.loading import empty_backbone, load_checkpoint, read_checkpoint_config, save_checkpoint
from dlm.models.sizes import SIZES, SIZES_BY_FAMILY, family_of_size
from tests.models.attention.windows import WindowAttention, block_causal, everything, logits_of, shaken

GOLDENS = Path(__file__).parents[2] / "goldens"
FOLDERS = sorted(path.parent.name for path in GOLDENS.glob("*/logits.safetensors"))
SPECIAL = SpecialTokens(mask_id=511, eos_id=510)
TINY = [name for name in SIZES if name.startswith("tiny")]
ONE_FOLDER = {"llada_moe": "llada_moe", "llada2": "llada2_moe", "dream": "dream", "sdar": "sdar"}
"""Family -> a golden folder of it, beside dense LLaDA, whose config is tested with the loading."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_logits_are_those_of_the_published_program(folder: str) -> None:
    backbone = load_checkpoint(GOLDENS / folder, special=SPECIAL).backbone
    path = GOLDENS / folder / "logits.safetensors"
    vectors = load_file(path)
    with safe_open(path, framework="pt") as file:
        block = (file.metadata() or {}).get("block_length")
    mask = everything if block is None else block_causal(int(block))
    compared = {"logits": logits_of(backbone, vectors["input_ids"], mask)}
    if block is not None:
        compared["logits_full_attention"] = logits_of(backbone, vectors["input_ids"])
    for name, logits in compared.items():
        torch.testing.assert_close(logits, vectors[name], atol=3e-4, rtol=1e-4)
    assert set(vectors) - set(compared) <= {"input_ids", "attention_mask", "logits_attention_mask"}
    if "attention_mask" in vectors:
        for row, kept in enumerate(vectors["attention_mask"].bool()):
            ids = vectors["input_ids"][row : row + 1]
            logits = logits_of(backbone, ids, lambda query, key, kept=kept: everything(query, key) & kept[key])
            expected = vectors["logits_attention_mask"][row][kept]
            torch.testing.assert_close(logits[0][kept], expected, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_published_file_is_written_as_it_was(folder: str, tmp_path: Path) -> None:
    read = load_checkpoint(GOLDENS / folder, special=SPECIAL)
    save_checkpoint(read.backbone, SPECIAL, tmp_path, family=read.family)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path, GOLDENS / folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_checkpoint_config(tmp_path).backbone == read.backbone.config


@pytest.mark.parametrize("size", TINY)
def test_save_and_load_are_inverse(size: str, tmp_path: Path) -> None:
    first = shaken(size)
    assert first.family.name == family_of_size(size)
    save_checkpoint(first.backbone, first.special, tmp_path, family=first.family)
    again = load_checkpoint(tmp_path)
    assert again.family is first.family
    assert again.backbone.config == first.backbone.config
    assert (again.special.mask_id, again.special.eos_id) == (first.special.mask_id, first.special.eos_id)
    loaded = dict(again.backbone.named_parameters())
    assert all(torch.equal(value, loaded[name]) for name, value in first.backbone.named_parameters())


@pytest.mark.parametrize("size", ["tiny_sdar", "tiny_dream", "tiny_moe", "tiny_llada2"])
def test_tied_embeddings_are_written_once(size: str, tmp_path: Path) -> None:
    config = replace(SIZES[size], tie_embeddings=True)
    backbone = empty_backbone(config, torch.float32, "cpu")
    backbone.initialize(1)
    family = next(family for family in FAMILIES if family.name == family_of_size(size))
    save_checkpoint(backbone, SPECIAL, tmp_path, family=family)
    assert not any("head" in name for name in load_file(tmp_path / "model.safetensors"))
    again = load_checkpoint(tmp_path).backbone
    assert again.config == config
    assert again.lm_head.weight.data_ptr() == again.embedding.weight.data_ptr()
    assert torch.equal(again.lm_head.weight, backbone.embedding.weight)


@pytest.mark.parametrize("size", TINY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@torch.inference_mode()
def test_a_window_has_the_same_bits_alone_and_in_company(size: str, dtype: str) -> None:
    backbone = shaken(size, dtype).backbone
    generator = torch.Generator().manual_seed(5)
    mine = torch.randint(0, 1024, (13,), generator=generator)
    place = torch.arange(13)

    def run(windows: list[Tensor]) -> Tensor:
        lengths = [len(window) for window in windows]
        positions = torch.cat([torch.arange(length) for length in lengths])
        return backbone.head(backbone(torch.cat(windows), positions, WindowAttention(lengths)))

    alone = run([mine])
    for before in ([], [1], [2, 3], [7, 17, 6], [37]):
        for after in ([], [5]):
            others = [torch.randint(0, 1024, (length,), generator=generator) for length in (*before, *after)]
            windows = [*others[: len(before)], mine, *others[len(before) :]]
            assert torch.equal(run(windows)[place + sum(before)], alone)


@torch.inference_mode()
def test_given_embeddings_take_the_place_of_the_tokens() -> None:
    backbone = shaken("tiny_moe").backbone
    tokens, other = torch.arange(10), torch.arange(10, 20)
    positions, attention = torch.arange(10), WindowAttention([10])
    plain = backbone(tokens, positions, attention)
    assert torch.equal(backbone(other, positions, attention, backbone.embedding(tokens)), plain)
    mixed = (backbone.embedding(tokens) + backbone.embedding(other)) / 2
    assert not torch.allclose(backbone(tokens, positions, attention, mixed), plain)


def test_what_each_family_says_of_itself() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) == len(SIZES_BY_FAMILY)
    for family in FAMILIES:
        assert family.default_algorithm in family.algorithms
        for size in SIZES_BY_FAMILY[family.name].values():
            assert (family.block_length is None) == (size.attention == "bidirectional") == (size.block_length is None)
        for config in SIZES_BY_FAMILY[family.name].values():
            assert (config.block_length is None) == (family.block_length is None)
            assert config.shifted == (family.name == "dream")


def config_of(folder: str) -> dict[str, Any]:
    return dict(json.loads((GOLDENS / folder / "config.json").read_text()))


NEMOTRON_CONFIG = NEMOTRON.write_config(SIZES["tiny_nemotron"], SPECIAL)
CONFIGS = {name: config_of(folder) for name, folder in ONE_FOLDER.items()} | {"nemotron": NEMOTRON_CONFIG}


def test_the_architecture_decides_where_the_model_type_is_shared() -> None:
    assert config_of("llada")["model_type"] == config_of("llada_moe")["model_type"]
    assert family_of(config_of("llada")).name == "llada"
    for name, config in CONFIGS.items():
        assert family_of(config).name == name


@pytest.mark.parametrize(
    ("name", "key"),
    [(name, key) for name in CONFIGS for key in ("hidden_size", "num_key_value_heads", "rms_norm_eps")]
    + [
        ("llada_moe", "num_experts_per_tok"),
        ("llada_moe", "norm_topk_prob"),
        ("llada2", "topk_group"),
        ("llada2", "head_dim"),
        ("dream", "rope_theta"),
        ("dream", "mask_token_id"),
        ("sdar", "head_dim"),
        ("nemotron", "rope_parameters"),
        ("nemotron", "block_size"),
    ],
)
def test_a_config_that_lacks_a_key_is_refused_by_name(name: str, key: str) -> None:
    config = {k: v for k, v in CONFIGS[name].items() if k != key}
    with pytest.raises(
        CheckpointError, match=f"config.json does not describe a {name} model that can be loaded:\n  lacks {key};"
    ):
        family_of(config).read_config(config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llada_moe", {"moe_layer_freq": [0, 1]}, r"moe_layer_freq=\[0, 1\]"),
        ("llada_moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size=64"),
        (
            "llada2",
            {"score_function": "softmax", "norm_head": True},
            "norm_head=True must be False.*\n.*score_function='softmax'",
        ),
        ("llada2", {"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ("llada2", {"n_group": 3}, "num_experts=8 must divide by n_group=3"),
        ("dream", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("dream", {"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ("sdar", {"attention_bias": True}, "attention_bias=True must be False"),
        ("nemotron", {"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        (
            "nemotron",
            {"rope_parameters": {"rope_type": "yarn"}},
            "lacks rope_parameters.factor, rope_parameters.llama_4_scaling_beta",
        ),
        (
            "nemotron",
            {"rope_parameters": {**NEMOTRON_CONFIG["rope_parameters"], "rope_type": "linear"}},
            "rope_type='linear'",
        ),
    ],
)
def test_a_config_of_another_kind_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    config = {**CONFIGS[name], **changes}
    with pytest.raises(CheckpointError, match=message):
        family_of(config).read_config(config)


def test_an_absent_head_dim_is_hidden_by_heads() -> None:
    assert "head_dim" not in CONFIGS["dream"]
    assert family_of(CONFIGS["dream"]).read_config(CONFIGS["dream"]).head_dim == 16
    wide = {**CONFIGS["sdar"], "head_dim": 32}
    assert family_of(wide).read_config(wide).head_dim == 32


def test_blocks_are_the_configs_or_the_familys() -> None:
    blocks = {name: family_of(config).read_config(config).block_length for name, config in CONFIGS.items()}
    assert blocks == {"llada_moe": None, "llada2": 32, "dream": None, "sdar": 4, "nemotron": 8}
    silent = {key: value for key, value in CONFIGS["sdar"].items() if key != "block_size"}
    assert family_of(silent).read_config(silent).block_length == 4
    other = {**silent, "block_size": 16}
    assert family_of(other).read_config(other).block_length == 16


def test_ids_come_from_the_config_then_the_tokenizer_then_the_caller(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDENS / "llada2_moe", tmp_path / "model", ignore=shutil.ignore_patterns("*.jsonl"))
    with pytest.raises(CheckpointError, match=r"does not name the mask.*<\|mask\|>.*special=SpecialTokens"):
        load_checkpoint(folder)
    assert load_checkpoint(folder, special=SPECIAL).special == SPECIAL
    tokens = {"<|mask|>": 500, "<|endoftext|>": 501, "<|role_end|>": 502}
    added = [{"id": i, "content": text} for text, i in tokens.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    assert read_checkpoint_config(folder).special == SpecialTokens(500, 501, 502)
    (folder / "config.json").write_text(json.dumps({**config_of("llada2_moe"), "mask_token_id": 7, "eos_token_id": 8}))
    assert read_checkpoint_config(folder).special == SpecialTokens(7, 8, 502)
    assert read_checkpoint_config(folder, SPECIAL).special == SPECIAL
