"""Every family: the logits of the programs that published it, its config, its tensors, and bitwise row invariance."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from dlm.errors import CheckpointError
from dlm.models.architecture import BackboneConfig, YarnConfig
from dlm.models.backbone import Backbone
from dlm.models.families import FAMILIES, NEMOTRON, SpecialTokens, family_of
from dlm.models.loading import Checkpoint, load_checkpoint, random_checkpoint, read_checkpoint_config, save_checkpoint
from dlm.models.rotary import Rotary
from dlm.models.sizes import SIZES, SIZES_BY_FAMILY, family_of_size

GOLDENS = Path(__file__).parents[1] / "goldens"
FOLDERS = sorted(path.parent.name for path in GOLDENS.glob("*/logits.safetensors"))
SPECIAL = SpecialTokens(mask_id=511, eos_id=510)
TINY = [name for name in SIZES if name.startswith("tiny")]
ONE_FOLDER = {"llada_moe": "llada_moe", "llada2": "llada2_moe", "dream": "dream", "sdar": "sdar"}
"""Family -> a golden folder of it, beside dense LLaDA, whose config is tested with the loading."""

Mask = Callable[[Tensor, Tensor], Tensor]
"""From query positions `[rows, 1]` and key positions `[1, keys]` to who sees whom."""


def everything(query: Tensor, key: Tensor) -> Tensor:
    return (query >= 0) & (key >= 0)


def causal(query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def block_causal(length: int) -> Mask:
    return lambda query, key: query // length >= key // length


class WindowAttention:
    """The definition, window by window: row i of a window sees row j where the mask says so."""

    def __init__(self, lengths: Sequence[int], mask: Mask = everything) -> None:
        self.lengths, self.mask = lengths, mask

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.zeros_like(query)
        group = query.shape[1] // key.shape[1]
        start = 0
        for length in self.lengths:
            rows, place = slice(start, start + length), torch.arange(length)
            k, v = (part[rows].repeat_interleave(group, dim=1).transpose(0, 1) for part in (key, value))
            scores = query[rows].transpose(0, 1) @ k.transpose(1, 2) * query.shape[2] ** -0.5
            seen = self.mask(place.unsqueeze(1), place.unsqueeze(0))
            output[rows] = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1)
            start += length
        return output


@torch.inference_mode()
def logits_of(backbone: Backbone, token_ids: Tensor, mask: Mask = everything) -> Tensor:
    """`[rows, width, vocab]` of `token_ids [rows, width]`, each row a window of its own."""
    rows, width = token_ids.shape
    attention = WindowAttention([width] * rows, mask)
    hidden = backbone(token_ids.flatten(), torch.arange(width).repeat(rows), attention)
    return backbone.head(hidden).view(rows, width, -1)


def shaken(size: str, dtype: str = "float32") -> Checkpoint:
    """A random checkpoint in which no norm is 1 and no bias 0."""
    checkpoint = random_checkpoint(size, seed=3, dtype=dtype)
    generator = torch.Generator().manual_seed(11)
    for parameter in checkpoint.backbone.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter += noise.to(parameter.dtype) * (0.3 if parameter.dim() == 1 else 0.1)
    return checkpoint


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
        assert (family.block_length is None) == (family.attention == "bidirectional")
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
        ("llada2", "partial_rotary_factor"),
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
    with pytest.raises(CheckpointError, match=f"config.json lacks {key};"):
        family_of(config).read_config(config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llada_moe", {"moe_layer_freq": [0, 1]}, r"moe_layer_freq=\[0, 1\]"),
        ("llada_moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size=64"),
        ("llada2", {"score_function": "softmax", "norm_head": True}, "norm_head=True.*score_function='softmax'"),
        ("llada2", {"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ("dream", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("dream", {"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ("sdar", {"attention_bias": True}, r"attention_bias=True \(supported: False\)"),
        ("nemotron", {"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ("nemotron", {"rope_parameters": {"rope_type": "yarn"}}, "lacks rope_theta, factor"),
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


YARN = YarnConfig(factor=16.0, original_positions=64, mscale=1.0, mscale_all_dim=0.5, query_beta=0.1)


def test_yarn_tables_are_those_of_the_formula() -> None:
    """Equations 17 to 22 of arXiv 2309.00071, dimension by dimension in Python's floats."""
    config = BackboneConfig(64, 64, 64, 1, 2, 2, 32, 1e-5, 1e4, 300, yarn=YARN)
    rotary = Rotary(config)
    low = math.floor(32 * math.log(64 / (32 * 2 * math.pi)) / (2 * math.log(1e4)))
    high = math.ceil(32 * math.log(64 / (1 * 2 * math.pi)) / (2 * math.log(1e4)))
    magnitude = (0.1 * math.log(16) + 1) / (0.05 * math.log(16) + 1)
    kept = stretched = 0
    for dim in range(16):
        frequency = 1e4 ** (-2 * dim / 32)
        ramp = min(max((dim - max(low, 0)) / (high - max(low, 0)), 0), 1)
        frequency = frequency * (1 - ramp) + frequency / 16 * ramp
        kept, stretched = kept + (ramp == 0), stretched + (ramp == 1)
        for position in (0, 1, 63, 64, 200, 299):
            angle = position * frequency
            assert float(rotary.cos[position, dim]) == pytest.approx(magnitude * math.cos(angle), abs=1e-4)
            assert float(rotary.sin[position, dim]) == pytest.approx(magnitude * math.sin(angle), abs=1e-4)
    assert kept
    assert stretched
    assert kept + stretched < 16
    positions = torch.tensor([0, 63, 64, 127, 128, 299])
    scale = rotary.gather_query_scale(positions, torch.float32)
    assert scale is not None
    expected = [1 + 0.1 * math.log(1 + position // 64) for position in positions.tolist()]
    torch.testing.assert_close(scale.flatten(), torch.tensor(expected))


def test_nemotron_is_ministral_with_another_head(tmp_path: Path) -> None:
    """Under a causal mask, beyond the original context, with the weights handed over by their published names."""
    from transformers import Ministral3Config, Ministral3ForCausalLM

    mine = shaken("tiny_nemotron")
    save_checkpoint(mine.backbone, mine.special, tmp_path, family=NEMOTRON)
    written = json.loads((tmp_path / "config.json").read_text())
    shape = {key: written[key] for key in written if key not in ("architectures", "model_type", "torch_dtype")}
    twin = Ministral3ForCausalLM(Ministral3Config(**shape, attn_implementation="eager")).eval()
    state = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        state[name.replace("encoder.", "model.").replace("diffusion_head.", "lm_head.")] = tensor
    twin.load_state_dict(state)
    token_ids = torch.randint(0, 1024, (1, 300), generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        expected = twin(token_ids).logits
    logits = logits_of(mine.backbone, token_ids, causal)
    assert F.softmax(expected, -1).amax() < 0.9999
    torch.testing.assert_close(logits, expected, atol=3e-4, rtol=1e-4)
