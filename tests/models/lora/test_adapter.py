"""LoRA adapters in PEFT's format, held to a merge by hand on the checkpoint's own tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlm import convert
from dlm.cli.command_line import compose_config
from dlm.errors import CheckpointError
from dlm.models.io.loading import load_checkpoint
from dlm.models.io.model_source import CheckpointSource
from dlm.models.lora.patterns import NamePatterns
from tests.models.checkpoints import copy_golden, golden_tensors
from tests.rounding import of_products

BLOCK = "model.transformer.blocks.{}.{}"
TARGETS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
MODULES = [BLOCK.format(index, target) for index in range(2) for target in TARGETS] + ["model.transformer.ff_out"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return copy_golden(tmp_path / "base")


def halves(modules: list[str], ranks: dict[str, int] | None = None) -> dict[str, Tensor]:
    """Random tensors of rank 4, or the rank that is given, under PEFT's names."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for module in modules:
        out, width = golden_tensors()[f"{module}.weight"].shape
        rank = (ranks or {}).get(module, 4)
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return tensors


def write_adapter(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    """As PEFT 0.17 writes one, with every key that it has."""
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    known = {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "owner/base", "bias": "none",
        "corda_config": None, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "layer_replication": None, "layers_pattern": None,
        "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 16, "lora_bias": False, "lora_dropout": 0.05,
        "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA",
        "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": None, "target_modules": list(TARGETS),
        "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_dora": False,
        "use_qalora": False, "use_rslora": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**known, **settings}))
    return folder


def merged_by_hand(base: Path, folder: Path, scales: dict[str, float]) -> dict[str, Tensor]:
    """The backbone's parameters after the checkpoint's own tensors were changed one by one and written again."""
    tensors, adapter = golden_tensors(), load_file(folder / "adapter_model.safetensors")
    for module, scale in scales.items():
        down, up = (adapter[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + scale * (up @ down)
    save_file(tensors, base / "model.safetensors")
    return dict(load_checkpoint(base).backbone.named_parameters())


def assert_merged(base: Path, folder: Path, scales: dict[str, float]) -> None:
    found = dict(load_checkpoint(base, adapter=folder).backbone.named_parameters())
    plain = dict(load_checkpoint(base).backbone.named_parameters())
    expected = merged_by_hand(base, folder, scales)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(found[name], value) for name, value in plain.items())


def test_an_adapter_of_every_matrix_is_merged(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", halves(MODULES))
    assert_merged(base, folder, dict.fromkeys(MODULES, 4.0))


@pytest.mark.parametrize("target", ["q_proj", "k_proj", "v_proj", "ff_proj", "up_proj"])
def test_a_part_of_a_fused_weight_is_changed_alone(base: Path, tmp_path: Path, target: str) -> None:
    module = BLOCK.format(1, target)
    folder = write_adapter(tmp_path / "lora", halves([module]))
    assert_merged(base, folder, {module: 4.0})


def test_rank_stabilized_adapters_are_scaled_by_the_root_of_the_rank(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", halves(MODULES), use_rslora=True)
    assert_merged(base, folder, dict.fromkeys(MODULES, 16 / math.sqrt(4)))


def test_rank_and_alpha_may_differ_by_module(base: Path, tmp_path: Path) -> None:
    query, other = BLOCK.format(0, "q_proj"), BLOCK.format(1, "q_proj")
    folder = write_adapter(
        tmp_path / "lora",
        halves([query, other], {query: 2}),
        rank_pattern={r"blocks\.0\.q_proj": 2},
        alpha_pattern={"q_proj": 6},
    )
    assert_merged(base, folder, {query: 3.0, other: 1.5})


def test_a_half_precision_model_is_rounded_once(base: Path, tmp_path: Path) -> None:
    module = BLOCK.format(0, "attn_out")
    folder = write_adapter(tmp_path / "lora", halves([module]))
    found = load_checkpoint(base, adapter=folder, dtype="bfloat16").backbone.layers[0].attention_out.weight
    whole = load_checkpoint(base, adapter=folder).backbone.layers[0].attention_out.weight
    assert torch.equal(found, whole.bfloat16())


def test_the_source_and_the_conversion_merge_the_same(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", halves(MODULES))
    source = CheckpointSource(path=str(base), adapter_path=str(folder))
    assert source.faults() == []
    merged = dict(source.load(torch.device("cpu")).backbone.named_parameters())
    overrides = [f"model.path={base}", f"model.adapter_path={folder}", "format=hf", f"output={tmp_path / 'merged'}"]
    assert convert.run(compose_config("convert", overrides), ()) == 0
    again = load_checkpoint(tmp_path / "merged").backbone
    assert all(torch.equal(again.get_parameter(name), value) for name, value in merged.items())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora=True (supported: left out)"),
        ({"bias": "all"}, "bias='all' (supported: 'none')"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head'] (supported: left out)"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layer_replication": [[0, 4]]}, "layer_replication=[[0, 4]]"),
        ({"target_parameters": ["experts.w1"]}, "target_parameters=['experts.w1']"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices=[1]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"peft_type": "IA3"}, "peft_type='IA3' (supported: 'LORA')"),
        ({"r": None}, "r is missing"),
        ({"some_new_option": 3}, "some_new_option=3"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    base: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    folder = write_adapter(tmp_path / "lora", halves(MODULES), **settings)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(base, adapter=folder)
    assert said in str(raised.value)
    assert "adapter_config.json" in str(raised.value)


def test_all_that_is_refused_is_named_at_once(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", halves(MODULES), use_dora=True, bias="all")
    with pytest.raises(CheckpointError, match=r"bias='all'.*use_dora=True"):
        load_checkpoint(base, adapter=folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model.model.model.layers.0.q_proj.lora_A.weight": torch.ones(4, 64),
          "base_model.model.model.layers.0.q_proj.lora_B.weight": torch.ones(64, 4)},
         r"1 modules that the llada family does not have \(model.layers.0.q_proj\); was it trained on another"),
        ({"base_model.model.model.transformer.blocks.0.q_proj.lora_B.weight": torch.ones(64, 3)},
         r"q_proj.lora_B.weight has shape \[64, 3\]; rank 4 on a weight of \[64, 64\] makes it \[64, 4\]"),
        ({"base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight": torch.ones(4, 65)},
         r"q_proj.lora_A.weight has shape \[4, 65\]"),
        ({"base_model.model.model.transformer.wte.lora_embedding_A": torch.ones(4, 512)},
         r"lora_embedding_A is not base_model.model.<module>.lora_A.weight"),
        ({"base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight": None}, r"q_proj has lora_B alone"),
        ({"base_model.model.model.transformer.ln_f.lora_A.weight": torch.ones(4, 64),
          "base_model.model.model.transformer.ln_f.lora_B.weight": torch.ones(64, 4)},
         r"ln_f has a weight of shape \[64\]; LoRA is for matrices"),
    ],
)  # fmt: skip
def test_foreign_modules_and_wrong_shapes_are_named(
    base: Path, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    tensors = {name: value for name, value in {**halves(MODULES), **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(base, adapter=write_adapter(tmp_path / "lora", tensors))


def test_a_folder_that_is_no_adapter_says_what_is_missing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_path=.*nowhere: no such folder; it holds adapter_config.json"):
        load_checkpoint(base, adapter=tmp_path / "nowhere")
    folder = write_adapter(tmp_path / "lora", halves(MODULES))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"has no adapter_model.safetensors; only safetensors are read"):
        load_checkpoint(base, adapter=folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config.json does not exist"):
        load_checkpoint(base, adapter=folder)


class Branch(torch.nn.Module):
    """A module with any children."""

    def child(self, path: list[str], leaf: torch.nn.Module) -> None:
        if len(path) == 1:
            self.add_module(path[0], leaf)
            return
        if path[0] not in self._modules:
            self.add_module(path[0], Branch())
        below = self.get_submodule(path[0])
        assert isinstance(below, Branch)
        below.child(path[1:], leaf)


@pytest.mark.slow
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_what_peft_itself_writes_is_merged_as_peft_merges_it(base: Path, tmp_path: Path, rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    model = Branch()
    for module in MODULES:
        weight = golden_tensors()[f"{module}.weight"]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = torch.nn.Parameter(weight)
        model.child(module.split("."), linear)
    config = peft.LoraConfig(
        r=4, lora_alpha=10, use_rslora=rslora, target_modules=list(TARGETS), rank_pattern={"k_proj": 2},
        alpha_pattern={r"blocks\.1\.q_proj": 3}, init_lora_weights=False,
    )  # fmt: skip
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "lora")
    merged = {f"{name}.weight": module.weight for name, module in tuned.merge_and_unload().named_modules()
              if isinstance(module, torch.nn.Linear)}  # fmt: skip
    overrides = [f"model.path={base}", f"model.adapter_path={tmp_path / 'lora'}", "format=hf"]
    assert convert.run(compose_config("convert", [*overrides, f"output={tmp_path / 'merged'}"]), ()) == 0
    found = load_file(tmp_path / "merged" / "model.safetensors")
    for name, weight in merged.items():
        assert not torch.equal(found[name], golden_tensors()[name]), name
        rounding = of_products(torch.float32, config.r, 2) * float(weight.detach().abs().max())
        torch.testing.assert_close(found[name], weight.detach(), rtol=0, atol=rounding)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj'], not an object"),
        ({"alpha_pattern": 5}, "alpha_pattern is 5, not an object"),
        ({"rank_pattern": {"(?:.|.)*[0-9][^a-z]": 2}}, "takes too long; write plain module names"),
        ({"rank_pattern": {"(?:(?:a{999}){999}){999}": 2}}, "repeats too much; write plain module names"),
        ({"rank_pattern": {"(": 2}}, "'(' is no regular expression"),
        ({"rank_pattern": {"x" * 600: 2}}, "has 600 characters"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern has 0 for 'q_proj' (supported: whole numbers from 1"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern has 'x' for 'q_proj'"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern has None for 'q_proj'"),
        ({"alpha_pattern": {"q_proj": math.nan}}, "alpha_pattern has nan for 'q_proj'"),
        ({"r": True}, "r=True (supported: whole numbers from 1 to 65536)"),
        ({"r": 10**400}, "r=an integer of 1329 bits (supported: whole"),
        ({"r": -4}, "r=-4"),
        ({"r": 4.5}, "r=4.5"),
        ({"r": "4"}, "r='4'"),
        ({"lora_alpha": math.nan}, "lora_alpha=nan (supported: numbers from -1e+06 to 1e+06)"),
        ({"lora_alpha": math.inf}, "lora_alpha=inf"),
        ({"lora_alpha": 1e300}, "lora_alpha=1e+300"),
        ({"lora_alpha": [16]}, "lora_alpha=[16]"),
        ({"use_rslora": "yes"}, "use_rslora='yes' (supported: true, false)"),
        ({"\x1b[31m\n": 1}, r"'\x1b[31m\n'=1 (supported: left out)"),
        ({"bias": "all\n" * 500}, "bias='all"),
    ],
)
def test_absurd_settings_are_refused_by_name(base: Path, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    folder = write_adapter(tmp_path / "lora", halves(MODULES), **settings)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(base, adapter=folder)
    message = str(raised.value)
    assert said in message
    assert "adapter_config.json" in message
    assert message.isprintable()
    assert len(message) < 700


def test_patterns_with_anchors_and_alternatives_count(base: Path, tmp_path: Path) -> None:
    """As PEFT itself writes them: anchors, alternatives, classes."""
    query = BLOCK.format(0, "q_proj")
    pattern = r"^model\.transformer\.blocks\.(?:0|[2-9])\..*q_proj$"
    folder = write_adapter(tmp_path / "lora", halves([query], {query: 2}), rank_pattern={pattern: 2})
    assert_merged(base, folder, {query: 8.0})


@pytest.mark.parametrize("pattern", ["((.*)*)*x", "(a|a)*" * 20 + "b", "(.*)" * 12 + "x", "(a+)+$"])
def test_patterns_that_backtrack_without_end_elsewhere_match_in_no_time(pattern: str) -> None:
    patterns = NamePatterns({pattern: 2}, "rank_pattern")
    assert patterns.value("model.transformer.blocks.0.q_proj", 4) == 4


def test_an_adapter_of_integers_is_refused(base: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.to(torch.int8) for name, tensor in halves(MODULES).items()}
    with pytest.raises(CheckpointError, match=r"holds torch.int8; weights are floating-point numbers"):
        load_checkpoint(base, adapter=write_adapter(tmp_path / "lora", tensors))
