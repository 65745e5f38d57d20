"""The memory plan holds: arena, logits and activations together stay inside what was allowed."""

from __future__ import annotations

import random

import pytest
import torch

from dlm.decoding import memory
from dlm.decoding.cuda.graphs import MAX_RECORDINGS, MAX_ROWS
from dlm.decoding.memory import (
    MIB,
    RECORDING_MIB,
    SCORING_COPIES,
    Limits,
    activation_bytes,
    budget,
    kept_bytes,
    plan_memory,
    recorded_bytes,
    records,
    slot_bytes,
    weight_bytes,
)
from dlm.errors import ConfigError
from dlm.models import backbone as backbone_module
from dlm.models.attention import SdpaAttention, VarlenAttention
from dlm.models.attention.frames import FrameShape, frame_rows
from dlm.models.attention.segments import Segment
from dlm.models.io.loading import random_checkpoint
from dlm.models.sizes import SIZES
from tests.stand_in_pool import Pool, watched


def test_the_plan_stays_inside_the_budget() -> None:
    draw, planned = random.Random(0), 0
    for _ in range(500):
        config = SIZES[draw.choice(list(SIZES))]
        dtype = draw.choice([torch.float32, torch.bfloat16])
        limits = Limits(draw.randint(2, config.max_positions), draw.randint(1, 64), draw.randint(1, 16384), 0.9)
        available, recorded = draw.randint(1, 40_000) * MIB, draw.random() < 0.5
        try:
            options = plan_memory(config, dtype, limits, available, recorded=recorded)
        except ConfigError:
            continue
        planned += 1
        slots = options.arena_tokens
        assert slots is not None
        assert limits.max_model_len <= slots <= 2 * limits.max_num_seqs * limits.max_model_len
        rows = max(limits.max_num_batched_tokens, 2 * limits.max_model_len)
        taken = slots * slot_bytes(config, dtype, recorded=recorded)
        taken += recorded_bytes(config, dtype, limits) if recorded else 0
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
    monkeypatch.setattr("dlm.decoding.memory.free_memory", lambda device: weights + 1000)
    assert budget(torch.device("cpu"), 0.25, config, torch.float32) == 250


def test_recordings_take_from_the_arena_and_are_named_where_nothing_is_left() -> None:
    config, limits = SIZES["8b"], Limits(4096, 16, 8192, 0.9)
    with pytest.raises(ConfigError) as raised:
        plan_memory(config, torch.bfloat16, limits, 100 * MIB)
    enough = int(str(raised.value).split(" needs ")[1].split()[0])
    with pytest.raises(ConfigError, match="enforce_eager=true needs less"):
        plan_memory(config, torch.bfloat16, limits, enough * MIB, recorded=True)
    eager, recorded = (
        plan_memory(config, torch.bfloat16, limits, 30_000 * MIB, recorded=wanted) for wanted in (False, True)
    )
    assert eager.arena_tokens is not None
    assert recorded.arena_tokens is not None
    print(f"arena of {eager.arena_tokens} slots, {recorded.arena_tokens} with recordings")
    assert recorded.arena_tokens < eager.arena_tokens


def test_where_forwards_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `choose_recorder` decides once there is a model."""
    cuda, half = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(memory, "choose_backend", lambda device, dtype: VarlenAttention)
    assert records(cuda, half)
    assert not records(cuda, half, parallel=2)
    assert not records(torch.device("cpu"), half)
    monkeypatch.setattr(memory, "choose_backend", lambda device, dtype: SdpaAttention)
    assert not records(cuda, torch.float32)


def test_all_sizes_of_recordings_are_counted() -> None:
    sizes = frame_rows(MAX_ROWS)
    shapes = {FrameShape.of([Segment(0, rows, 0, 0, rows)], in_place=True).rows for rows in range(1, MAX_ROWS + 1)}
    assert set(sizes) == shapes
    assert sizes == sorted(sizes)
    assert len(sizes) <= MAX_RECORDINGS


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("name", ["tiny", "tiny_moe", "tiny_llada2", "tiny_dream", "tiny_sdar", "tiny_nemotron"])
def test_recordings_in_one_pool_stay_inside_the_estimate(
    name: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards of all sizes, in the allocator that their graphs would share."""
    monkeypatch.setattr(backbone_module, "CACHE_TILE", MAX_ROWS)  # all rows at once, as on a GPU
    model = random_checkpoint(name, dtype="float32").backbone
    limits = Limits(max_model_len=256, max_num_seqs=16, max_num_batched_tokens=512, utilization=0.9)
    sizes, pool = frame_rows(512), Pool()
    if order == "random":
        random.Random(name).shuffle(sizes)
    for rows in reversed(sizes) if order == "descending" else sizes:
        tokens, output = torch.arange(rows), torch.empty(rows, model.config.hidden_size)
        with torch.inference_mode(), watched(pool):
            output.copy_(model(tokens, tokens, lambda layer, query, key, value: torch.empty_like(query)))
    most = recorded_bytes(model.config, torch.float32, limits) - MAX_RECORDINGS * RECORDING_MIB * MIB
    print(f"{name}, {order}: {pool.held / MIB:.2f} MiB of {most / MIB:.2f}")
    assert most / 8 < pool.held <= most


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_share_counts_what_is_in_use() -> None:
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    before = budget(device, 0.5, SIZES["tiny"], torch.float32)
    held = torch.empty(total // 4, dtype=torch.uint8, device=device)
    assert before - budget(device, 0.5, SIZES["tiny"], torch.float32) == pytest.approx(held.numel(), rel=0.01)
