"""A policy is the backbone: what it scores, saves and reads is the backbone's own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from dlm.demo import CHECKPOINT
from dlm.errors import CheckpointError, ConfigError
from dlm.likelihood import D1OneStep, Likelihood
from dlm.models.io.loading import load_checkpoint
from dlm.rl.policy import Policy
from tests.rl.subjects import FAMILIES, bits, equal, fresh

PROMPTS, ANSWERS = [(5, 6, 7), (8, 9)], [(10, 11, 12, 13), (14, 15)]


def scores(likelihood: Likelihood) -> list[torch.Tensor]:
    gradients = torch.is_grad_enabled()
    found = likelihood.score(PROMPTS, ANSWERS, D1OneStep(), seed=1, per_token=True, gradients=gradients).per_token
    assert found is not None
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_the_familys_own_checkpoint(name: str, tmp_path: Path) -> None:
    policy = Policy(fresh(name, stirred=0.1))
    policy.save_pretrained(tmp_path / "own")
    policy.save_pretrained(tmp_path / "gathered", state_dict={k: v * 2 for k, v in policy.state_dict().items()})
    special = policy.checkpoint.special
    for folder, factor in (("own", 1), ("gathered", 2)):
        loaded = load_checkpoint(tmp_path / folder, special=special)
        assert loaded.backbone.config == policy.backbone.config
        assert loaded.family is policy.checkpoint.family
        assert equal(bits(loaded.backbone), {k: v * factor for k, v in bits(policy.backbone).items()})
    assert json.loads((tmp_path / "own" / "config.json").read_text())["architectures"][0] in (
        policy.checkpoint.family.architectures
    )
    policy.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="safe_serialization=False"):
        policy.save_pretrained(tmp_path / "other", safe_serialization=False)


def test_weights_are_read_back_whole_or_not_at_all(tmp_path: Path) -> None:
    policy, other = Policy(fresh()), Policy(fresh(stirred=0.3))
    before = bits(policy.backbone)
    other.save_pretrained(tmp_path / "other")
    policy.read_weights(tmp_path / "other")
    assert equal(bits(policy.backbone), bits(other.backbone))
    assert not equal(bits(policy.backbone), before)
    Policy(fresh("llada")).save_pretrained(tmp_path / "llada")
    with pytest.raises(CheckpointError, match="different architecture"):
        policy.read_weights(tmp_path / "llada")
    assert equal(bits(policy.backbone), bits(other.backbone))


def test_it_scores_as_its_backbone_does_with_gradients_and_a_reference_stays() -> None:
    policy = Policy(fresh())
    assert all(parameter.requires_grad for parameter in policy.parameters())
    reference = policy.frozen_copy()
    with torch.no_grad():
        found = policy(scores)
        assert all(map(torch.equal, found, scores(Likelihood(policy.backbone, policy.checkpoint.special))))
        assert all(map(torch.equal, found, reference(scores)))
    torch.cat(policy(scores)).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 0.01 * parameter.grad
        assert not torch.equal(policy(scores)[0], found[0])
        assert all(map(torch.equal, reference(scores), found))
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_memory_is_bounded_as_asked_for_the_reference_too() -> None:
    policy = Policy(fresh(), score_tokens=8, logits_mib=0.02)
    forwards: Counter[str] = Counter()
    for name, model in (("policy", policy), ("reference", policy.frozen_copy())):
        hook = model.backbone.register_forward_hook(lambda *_, name=name: forwards.update([name]))
        with torch.no_grad():
            model(scores)
        hook.remove()
        assert model.likelihood.given.max_rows == 8  # of 2 KiB, in whole tiles
    assert forwards == {"policy": 2, "reference": 2}


def test_a_folder_is_loaded_as_told() -> None:
    policy = Policy.from_pretrained(CHECKPOINT, dtype="bfloat16")
    assert policy.dtype == torch.bfloat16
    assert policy.generation_config.eos_token_id == list(policy.checkpoint.special.end_ids)
