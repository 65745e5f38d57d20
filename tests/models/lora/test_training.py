"""LoRA in training: what it adds, where, and that PEFT and `model.adapter_path` read what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dlm.errors import ConfigError
from dlm.models.backbone import Backbone
from dlm.models.io.loading import Checkpoint, load_checkpoint, save_checkpoint
from dlm.models.io.naming import family_places
from dlm.models.lora.adapter import LoraAdapter
from dlm.models.lora.training import Lora, LoraOptions
from dlm.rl import Rollouts
from dlm.sampling_params import SamplingParams
from tests.models.checkpoints import copy_golden
from tests.rl.subjects import FAMILIES, OPTIONS, PROMPTS, bits, equal, fresh, stored
from tests.rounding import of_a_forward, of_products

RANK = LoraOptions(rank=8, alpha=4.0)
MERGED = of_products(torch.float32, RANK.rank, 2)
"""Rounding of a weight with what an adapter adds, as a share of the greatest weight."""
GREEDY = SamplingParams(gen_length=24, block_length=8, steps=24, temperature=0.0)


def trained(checkpoint: Checkpoint, options: LoraOptions = RANK) -> Lora:
    """An adapter that has learnt something."""
    lora = Lora(checkpoint.backbone, checkpoint.family, options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if ".up." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lora


def score(checkpoint: Checkpoint, gradients: bool = False) -> Tensor:
    rollouts = Rollouts(checkpoint, trainer=checkpoint.backbone, options=OPTIONS)
    return rollouts.score(PROMPTS[0], [30, 31, 32, 33], scheme="d1_onestep", gradients=gradients).mean


def plainly(checkpoint: Checkpoint, lora: Lora) -> Checkpoint:
    """Another model whose weights are the sums."""
    backbone = Backbone(checkpoint.backbone.config).requires_grad_(False).eval()
    backbone.load_state_dict(dict(lora.merged()))  # which rounds the sums to the model's dtype
    return Checkpoint(backbone, checkpoint.family, checkpoint.special, None)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_adapter_changes_nothing_and_a_trained_one_what_the_merged_weights_do(name: str) -> None:
    checkpoint = fresh(name)
    before, plain = bits(checkpoint.backbone), score(checkpoint)
    lora = Lora(checkpoint.backbone, checkpoint.family, RANK)
    assert torch.equal(score(checkpoint), plain)
    lora = trained(checkpoint := fresh(name))
    found, rounding = score(checkpoint), of_a_forward(checkpoint.backbone.config, torch.float32, 8)
    assert not torch.isclose(found, plain, rtol=10 * rounding)
    torch.testing.assert_close(found, score(plainly(checkpoint, lora)), rtol=rounding, atol=0.0)
    with lora.disabled():
        assert torch.equal(score(checkpoint), plain)
    assert torch.equal(score(checkpoint), found)
    assert equal({name: weight.detach() for name, weight in lora.weights.items()}, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_what_is_merged(name: str, tmp_path: Path) -> None:
    """Under the names of the family's checkpoints; each of their tensors has an A and a B of its own."""
    checkpoint = fresh(name)
    lora = trained(checkpoint)
    lora.save(tmp_path / "adapter", "owner/model")
    adapter = LoraAdapter.read(tmp_path / "adapter", checkpoint.family, checkpoint.backbone.config)
    merged = plainly(checkpoint, lora)
    places = family_places(merged.family, merged.backbone)
    for stem, weight in stored(checkpoint).items():
        rounding = MERGED * float(weight.abs().max())
        torch.testing.assert_close(adapter.merged(stem, weight, weight.dtype), places[stem], rtol=0, atol=rounding)
        assert torch.equal(places[stem], weight) == (stem not in adapter.scales)
    projections = {name.split(".")[-2] for name in adapter.scales}
    assert projections == set(lora_names(checkpoint))


def lora_names(checkpoint: Checkpoint) -> list[str]:
    """The projections that an adapter may have, as the error about another says."""
    with pytest.raises(ConfigError, match="has no 'other'; known: ") as error:
        Lora(checkpoint.backbone, checkpoint.family, LoraOptions(rank=8, targets=["other"]))
    return str(error.value).partition("known: ")[2].split(", ")


def test_gradients_go_to_the_adapter_alone() -> None:
    checkpoint = fresh()
    checkpoint.backbone.requires_grad_(False)
    lora = trained(checkpoint)
    score(checkpoint, gradients=True).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in lora.parameters())
    assert all(weight.grad is None for weight in lora.weights.values())


def test_only_the_targets_are_changed(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(copy_golden(tmp_path / "base"))
    lora = trained(checkpoint, LoraOptions(rank=8, targets=["q_proj", "v_proj"]))
    lora.save(tmp_path / "adapter")
    found = {name.split(".")[-3] for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")}
    assert found == {"q_proj", "v_proj"}
    before, after = stored(checkpoint), stored(plainly(checkpoint, lora))
    assert {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])} == found
    found, rounding = score(checkpoint), of_a_forward(checkpoint.backbone.config, torch.float32, 8)
    loaded = score(load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter"))
    torch.testing.assert_close(loaded, found, rtol=rounding, atol=0.0)
    assert not torch.isclose(loaded, score(load_checkpoint(tmp_path / "base")), rtol=10 * rounding)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated and will be:FutureWarning")
def test_peft_reads_it(tmp_path: Path) -> None:
    """SDAR's checkpoints have the names of Qwen3's."""
    from peft import PeftModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    checkpoint = fresh("sdar")
    config = checkpoint.backbone.config
    lora = trained(checkpoint)
    lora.save(tmp_path / "adapter", "owner/model")
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, head_dim=config.head_dim,
            num_key_value_heads=config.num_kv_heads, tie_word_embeddings=config.tie_embeddings,
        )
    )  # fmt: skip
    model.load_state_dict(stored(checkpoint), strict=False)
    merged: nn.Module = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    theirs, ours = merged.state_dict(), stored(plainly(checkpoint, lora))
    assert set(ours) <= set(theirs)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=MERGED * float(weight.abs().max()))


def test_a_copy_gets_sums_that_are_rounded_once() -> None:
    """What would be lost on weights in half precision is there on a copy in float32."""
    checkpoint, copy = fresh(), fresh()
    checkpoint.backbone.to(torch.bfloat16)
    lora = trained(checkpoint)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if ".up." in name:
                parameter.mul_(1e-3)
    rollouts = Rollouts(copy, trainer=checkpoint.backbone, options=OPTIONS)
    rollouts.sync(version=3)
    assert rollouts.weight_version == 3
    merged, copied = dict(lora.merged()), dict(copy.backbone.named_parameters())
    assert all(torch.equal(copied[name], merged[name].float()) for name in copied)
    weight, found = lora.weights["layers.0.qkv.weight"], copied["layers.0.qkv.weight"]
    assert float((found.bfloat16() == weight).double().mean()) > 0.9
    assert float((found == weight.float()).double().mean()) < 0.1


def test_another_arithmetic_is_refused() -> None:
    checkpoint = fresh()
    trained(checkpoint)
    rollouts = Rollouts(checkpoint, trainer=checkpoint.backbone, options=replace(OPTIONS, deterministic=False))
    with pytest.raises(ConfigError, match=r"decoder.deterministic: an adapter in training computes as the model does"):
        rollouts.generate(PROMPTS[:1], GREEDY)


@pytest.mark.bits
@pytest.mark.parametrize("rank", [8, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_with_an_adapter_depend_on_their_prompts_alone(dtype: torch.dtype, rank: int) -> None:
    checkpoint = fresh("golden")
    checkpoint.backbone.to(dtype)
    lora = trained(checkpoint, LoraOptions(rank=rank))
    assert all(parameter.dtype == torch.float32 for parameter in lora.parameters())
    rollouts = Rollouts(checkpoint, trainer=checkpoint.backbone, options=OPTIONS)
    together = rollouts.generate(PROMPTS, GREEDY)
    for prompt, one in zip(PROMPTS, together, strict=True):
        [alone] = rollouts.generate([prompt], GREEDY)
        assert alone.token_ids == one.token_ids
        assert alone.logprobs_raw == one.logprobs_raw


def test_equal_seeds_draw_equal_adapters() -> None:
    one, again, other = (
        Lora(checkpoint.backbone, checkpoint.family, RANK, seed).state_dict()
        for checkpoint, seed in ((fresh(), 0), (fresh(), 0), (fresh(), 1))
    )
    assert equal(one, again)
    assert not equal(one, other)


def test_a_model_is_saved_without_its_adapter(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(copy_golden(tmp_path / "base"))
    before = bits(checkpoint.backbone)
    trained(checkpoint)
    save_checkpoint(checkpoint.backbone, checkpoint.special, tmp_path / "saved", family=checkpoint.family)
    assert equal(bits(load_checkpoint(tmp_path / "saved").backbone), before)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (LoraOptions(rank=-8), "lora.rank=-8: must be at least 1, or 0"),
        (LoraOptions(rank=8, alpha=0.0), "lora.alpha=0.0: must be a number above 0"),
        (LoraOptions(rank=8, alpha=float("nan")), "lora.alpha=nan: must be a number above 0"),
        (LoraOptions(rank=8, targets="q_proj"), "lora.targets='q_proj': must be a list"),
        (LoraOptions(rank=8, targets=[]), "lora.targets=[]: must be a list"),
    ],
)
def test_values_that_make_no_adapter_are_named(options: LoraOptions, fault: str) -> None:
    assert [found for found in options.faults() if found.startswith(fault)] == options.faults() != []
