"""Runs that train an adapter: what they leave, how they go on, and that one model in memory is enough."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dlm.decoding.noise import seed_of
from dlm.demo import CHECKPOINT
from dlm.errors import ConfigError
from dlm.models.io.loading import load_checkpoint
from dlm.models.io.model_source import CheckpointSource
from dlm.models.lora.training import adapter_of
from dlm.rl import Rollouts
from dlm.rl.grpo.__main__ import run
from dlm.rl.grpo.config import check_grpo
from dlm.rl.grpo.record import Record
from dlm.text import TextCodec
from tests.rl.grpo.test_runs import AS_TRAINED, ROUNDING, Stopper, compose, figures, train

LORA = ("lora.rank=8", "optimizer.lr=0.01", "keep_every=2")


def learnt(record: Record) -> dict[str, torch.Tensor]:
    return load_file(record.adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return train(tmp_path_factory.mktemp("straight"), *LORA)


def test_the_adapter_that_is_left_is_what_the_policy_learnt(straight: Record) -> None:
    """The model with it gives the answers of the last measurement, and without it those of the first."""
    rows = [json.loads(line) for line in straight.answers.read_text().splitlines()]
    codec = TextCodec.load(CHECKPOINT)
    for step, adapter in ((0, None), (4, straight.adapter)):
        rollouts = Rollouts(load_checkpoint(CHECKPOINT, dtype="float32", adapter=adapter), codec=codec)
        for row in rows:
            if row["step"] == step and row["sample"] == 0:
                params = replace(AS_TRAINED, seed=seed_of(0, f"validation, {row['id']}, turn 0"))
                [rollout] = rollouts.generate([row["prompt"]], [params])
                assert codec.decode(rollout.token_ids) == row["text"]
    assert not straight.checkpoint.exists()
    assert {name.rsplit(".", 2)[1] for name in learnt(straight)} == {"lora_A", "lora_B"}
    assert all(tensor.abs().max() > 0 for tensor in learnt(straight).values())
    assert json.loads((straight.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "demo"


def test_the_state_to_go_on_from_holds_the_adapter_alone(straight: Record) -> None:
    held = torch.load(straight.state, weights_only=True)["weights"]
    assert sum(tensor.numel() for tensor in held.values()) == sum(each.numel() for each in learnt(straight).values())


def test_a_run_goes_on_as_if_it_had_not_been_stopped(straight: Record, tmp_path) -> None:
    with Stopper(tmp_path, after=2):
        assert run(compose(*LORA, f"run_dir={tmp_path}"), []) != 0
    assert run(compose(*LORA, f"run_dir={tmp_path}"), []) == 0
    again = Record(tmp_path)
    assert figures(again) == figures(straight)
    one, other = learnt(straight), learnt(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_model_is_its_own_reference(straight: Record, tmp_path, monkeypatch) -> None:
    """A divergence is measured, from 0, and no second model is loaded."""
    apart = [row["kl"] for row in straight.rows() if "kl" in row]
    assert apart[0] < ROUNDING**2 < min(apart[1:])
    loaded = []
    load = CheckpointSource.load
    monkeypatch.setattr(CheckpointSource, "load", lambda *given: loaded.append(given) or load(*given))
    train(tmp_path, *LORA, "steps=1", "objective.kl=0.1")
    assert len(loaded) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_decodes_with_the_adapter_merged(dtype: str, tmp_path, monkeypatch) -> None:
    seen = []
    sync = Rollouts.sync

    def synced(rollouts: Rollouts, *, version: int) -> None:
        sync(rollouts, version=version)
        assert rollouts.trainer is not None
        lora = adapter_of(rollouts.trainer)
        assert lora is not None
        copy = dict(rollouts.checkpoint.backbone.named_parameters())
        merged = dict(lora.merged())
        changed = [name for name, weight in lora.weights.items() if not torch.equal(weight, merged[name])]
        assert len(changed) == 4 * 4, "four projections in each of four layers"
        assert all(torch.equal(copy[name], weight.to(copy[name].dtype)) for name, weight in merged.items())
        seen.append(rollouts.weight_version)

    monkeypatch.setattr(Rollouts, "sync", synced)
    train(tmp_path, *LORA, f"rollout_dtype={dtype}", "steps=2")
    assert seen == [1, 2]


def test_weights_in_half_precision_can_be_adapted(tmp_path) -> None:
    record = train(tmp_path, *LORA, "model.dtype=bfloat16", "steps=2")
    assert all(tensor.dtype == torch.float32 for tensor in learnt(record).values())


def test_an_adapter_over_another_is_refused(straight: Record) -> None:
    with pytest.raises(ConfigError, match=r"model.adapter_path=.*: stacked adapters cannot be saved as one"):
        check_grpo(compose(*LORA, f"model.adapter_path={straight.adapter}"))


def test_a_target_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"llada has no 'query'; known: attn_out, ff_out, ff_proj, k_proj"):
        run(compose(*LORA, "lora.targets=[query]", f"run_dir={tmp_path}"), [])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("lora.rank=-1", r"lora.rank=-1: must be at least 1, or 0"),
        ("lora.alpha=-1", r"lora.alpha=-1.0: must be a number above 0"),
        ("lora.rank=0 lora.alpha=8", r"lora.alpha=8.0: nothing is adapted with lora.rank=0; write lora.rank=16"),
        ("lora.rank=0 lora.targets=[q_proj]", r"lora.targets=\['q_proj'\]: nothing is adapted with lora.rank=0"),
        ("decoder.deterministic=true", r"decoder.deterministic=true: .* or write rollout_dtype=float32"),
        ("model.drafter_adapter_path=x", r"model.drafter_adapter_path=x: a drafter is neither trained nor saved"),
    ],
)
def test_what_makes_no_adapter_is_refused(given: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        check_grpo(compose(*LORA, *given.split()))


def test_another_arithmetic_decodes_with_a_copy(tmp_path) -> None:
    record = train(tmp_path, *LORA, "steps=1", "decoder.deterministic=false", "rollout_dtype=float32")
    assert learnt(record)
