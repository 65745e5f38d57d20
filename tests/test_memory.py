"""The memory plan holds: arena, logits and activations together stay inside what was allowed."""

from __future__ import annotations

import random

import pytest
import torch

from dlm.errors import ConfigError
from dlm.memory import MIB, SCORING_COPIES, Limits, activation_bytes, budget, kept_bytes, plan_memory, weight_bytes
from dlm.models.loading import random_checkpoint
from dlm.models.sizes import SIZES


def test_the_plan_stays_inside_the_budget() -> None:
    draw, planned = random.Random(0), 0
    for _ in range(500):
        config = SIZES[draw.choice(list(SIZES))]
        dtype = draw.choice([torch.float32, torch.bfloat16])
        limits = Limits(draw.randint(2, config.max_positions), draw.randint(1, 64), draw.randint(1, 16384), 0.9)
        available = draw.randint(1, 40_000) * MIB
        try:
            options = plan_memory(config, dtype, limits, available)
        except ConfigError:
            continue
        planned += 1
        slots = options.arena_tokens
        assert slots is not None
        assert limits.max_model_len <= slots <= 2 * limits.max_num_seqs * limits.max_model_len
        rows = max(limits.max_num_batched_tokens, 2 * limits.max_model_len)
        taken = slots * config.kv_values_per_token * dtype.itemsize
        taken += options.logits_mib * MIB * SCORING_COPIES + activation_bytes(config, dtype, rows)
        taken += kept_bytes(config, dtype, limits)
        assert taken <= available
    assert planned > 200


def test_too_little_memory_is_refused_with_both_sizes() -> None:
    limits = Limits(4096, 16, 8192, 0.3)
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization=0.3 leaves 100 MiB .* needs \d+ MiB; raise"):
        plan_memory(SIZES["8b"], torch.bfloat16, limits, 100 * MIB)


def test_what_the_message_says_is_needed_is_enough() -> None:
    limits = Limits(4096, 16, 8192, 0.3)
    with pytest.raises(ConfigError) as raised:
        plan_memory(SIZES["8b"], torch.bfloat16, limits, 100 * MIB)
    needed = int(str(raised.value).split(" needs ")[1].split()[0])
    options = plan_memory(SIZES["8b"], torch.bfloat16, limits, needed * MIB)
    assert options.arena_tokens is not None
    assert options.arena_tokens >= 4096


def test_on_a_cpu_the_share_is_of_what_the_weights_leave_free(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SIZES["tiny"]
    weights = weight_bytes(config, torch.float32)
    backbone = random_checkpoint("tiny").backbone
    assert weights == sum(parameter.nbytes for parameter in backbone.parameters())
    monkeypatch.setattr("dlm.memory.free_memory", lambda device: weights + 1000)
    assert budget(torch.device("cpu"), 0.25, config, torch.float32) == 250


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_share_counts_what_is_in_use() -> None:
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    before = budget(device, 0.5, SIZES["tiny"], torch.float32)
    held = torch.empty(total // 4, dtype=torch.uint8, device=device)
    assert before - budget(device, 0.5, SIZES["tiny"], torch.float32) == pytest.approx(held.numel(), rel=0.01)
