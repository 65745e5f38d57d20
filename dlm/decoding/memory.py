"""Sizes the decoder to the device's memory and the user's limits.

Besides the weights, a forward needs: the arena of keys and values; logits and their scoring buffers; the activations of
the packed batch; what some algorithms keep of a canvas between forwards; and, with CUDA graphs, what the recordings
hold. All but the arena are bounded first; the arena takes at most the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlm.decoding.cuda.graphs import MAX_RECORDINGS, MAX_ROWS
from dlm.decoding.options import DecoderOptions
from dlm.distributed.group import launched
from dlm.errors import ConfigError
from dlm.models.architecture import BackboneConfig
from dlm.models.attention import VarlenAttention, choose_backend
from dlm.models.attention.frames import frame_rows
from dlm.models.backbone import Backbone
from dlm.models.devices import free_memory
from dlm.models.sharding import Shard

MIB = 1 << 20

LOGITS_MIB = 512
"""Memory for logits beyond which larger chunks are not faster."""

SCORING_COPIES = 24
"""Worst-case bytes that scoring holds for each byte of logits: with temperature and top-p a row exists in float64,
sorted, with its indices, probabilities and their cumulative sums (18 measured on a CPU; sorting on a GPU adds some)."""

RECORDING_MIB = 4
"""What CUDA itself keeps for one recording, hundreds of kernels and their arguments: assumed, not measured."""


@dataclass(frozen=True)
class Limits:
    """The user's limits on the decoder.

    Attributes:
        max_model_len: positions of the longest canvas.
        max_num_seqs, max_num_batched_tokens: as in `DecoderOptions`.
        utilization: share of the device's memory, above 0 and at most 1 (see `budget`).
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    utilization: float


def budget(
    device: torch.device, utilization: float, config: BackboneConfig, dtype: torch.dtype, parallel: int = 1
) -> int:
    """Bytes that the decoder may use on each device besides the weights, which are not loaded yet.

    On CUDA: `utilization` times the device's memory, minus memory in use by any process and the weights; the minimum
    over several devices. On a CPU: `utilization` times what the weights leave free, shared by `parallel` processes.
    """
    weights = weight_bytes(Shard(0, parallel).config(config), dtype)
    if device.type != "cuda":
        return int((free_memory(device) - parallel * weights) * utilization) // parallel
    devices = [device] if parallel == 1 or launched() else [torch.device("cuda", index) for index in range(parallel)]
    return min(_cuda_budget(each, utilization) for each in devices) - weights


def _cuda_budget(device: torch.device, utilization: float) -> int:
    total = torch.cuda.get_device_properties(device).total_memory
    return int(total * utilization) - (total - free_memory(device))


def weight_bytes(config: BackboneConfig, dtype: torch.dtype) -> int:
    """Bytes of a model's parameters, computed without allocating them."""
    with torch.device("meta"):
        backbone = Backbone(config)
    return sum(parameter.numel() for parameter in backbone.parameters()) * dtype.itemsize


def activation_bytes(config: BackboneConfig, dtype: torch.dtype, rows: int) -> int:
    """Upper estimate of the bytes one forward of `rows` tokens holds at once, besides arena and logits."""
    size, wide = dtype.itemsize, max(4, dtype.itemsize)
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    inner = config.intermediate_size
    if config.experts is not None:
        experts = config.experts
        routed = experts.top_k * (2 * experts.inner_size + config.hidden_size)
        inner = max(inner, routed + experts.shared_size)
    return rows * (config.hidden_size * (4 * size + 2 * wide) + heads * (size + 2 * wide) + inner * 4 * size)


def widest_bytes(config: BackboneConfig, dtype: torch.dtype, rows: int) -> int:
    """Bytes of the largest single tensor of a forward of `rows` tokens."""
    wide = max(4, dtype.itemsize)
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    projected = max(heads, 2 * config.intermediate_size)
    if config.experts is not None:
        routed = config.experts.top_k * max(2 * config.experts.inner_size, config.hidden_size)
        projected = max(projected, routed, 2 * config.experts.shared_size)
    return rows * max(projected * dtype.itemsize, max(config.num_heads * config.head_dim, config.hidden_size) * wide)


def records(device: torch.device, dtype: torch.dtype, parallel: int = 1) -> bool:
    """Whether a decoder on `device` may record forwards by default (`dlm.decoding.cuda.graphs.choose_recorder`)."""
    return device.type == "cuda" and parallel == 1 and choose_backend(device, dtype) is VarlenAttention


def recorded_bytes(config: BackboneConfig, dtype: torch.dtype, limits: Limits) -> int:
    """Upper estimate of the bytes recorded forwards hold regardless of the arena's size (`slot_bytes` has the rest).

    They share one pool and reuse each other's memory. At worst they are recorded smallest first: the widest tensor of
    each then fits nowhere and needs new memory, and everything else reuses that of wider ones.
    """
    most = min(MAX_ROWS, max(limits.max_num_batched_tokens, 2 * limits.max_model_len))
    sizes = frame_rows(most)
    pool = activation_bytes(config, dtype, sizes[-1])
    pool += sum(widest_bytes(config, dtype, rows) for rows in sizes[:-1])
    inputs = MAX_RECORDINGS * 8 * 8 * sizes[-1]  # at most eight 64-bit numbers a row, besides keys
    output = MAX_ROWS * config.hidden_size * dtype.itemsize
    return pool + inputs + output + MAX_RECORDINGS * RECORDING_MIB * MIB


def slot_bytes(config: BackboneConfig, dtype: torch.dtype, *, recorded: bool) -> int:
    """Bytes that an arena slot costs: keys and values of all layers, and, where kernels cannot read them in place, a
    gathered copy of one layer's, another in the recordings' pool, and the slot's index in each recording. Recordings
    round up by a quarter."""
    layer = config.kv_values_per_token * dtype.itemsize // config.num_layers
    more = -(-5 * (layer + 8 * MAX_RECORDINGS) // 4) if recorded else 0
    return layer * (config.num_layers + 1) + more


def kept_bytes(config: BackboneConfig, dtype: torch.dtype, limits: Limits) -> int:
    """Most bytes that canvases keep besides keys and values: two rows of hidden states per position, for `klass` with
    guidance or for soft inputs."""
    return 2 * limits.max_num_seqs * limits.max_model_len * config.hidden_size * dtype.itemsize


def plan_memory(
    whole: BackboneConfig,
    dtype: torch.dtype,
    limits: Limits,
    available: int,
    parallel: int = 1,
    *,
    recorded: bool = False,
) -> DecoderOptions:
    """Sizes of arena and logits that fit in `available` bytes along with the activations and what canvases keep.

    The arena is no larger than `max_num_seqs` canvases of `max_model_len` can use, each with its unconditional pair.

    Args:
        whole: architecture of the unsharded model.
        dtype: of its weights, and thus of keys and values.
        limits: the user's limits.
        available: bytes on each device.
        parallel: devices the model is sharded over.
        recorded: whether forwards are recorded (see `records`).

    Raises:
        ConfigError: not even one canvas of `max_model_len` fits; the message names both sizes.
    """
    config = Shard(0, parallel).config(whole)
    rows = max(limits.max_num_batched_tokens, 2 * limits.max_model_len)
    fixed = activation_bytes(config, dtype, rows) + kept_bytes(config, dtype, limits)
    fixed += recorded_bytes(config, dtype, limits) if recorded else 0
    row_bytes = config.vocab_size * max(4, dtype.itemsize)
    slot = slot_bytes(config, dtype, recorded=recorded)
    least_arena, least_mib = limits.max_model_len * slot, -(-4 * row_bytes // MIB)
    left = available - fixed
    needed = least_arena + least_mib * MIB * SCORING_COPIES
    if left < needed:
        raise ConfigError(
            f"gpu_memory_utilization={limits.utilization} leaves {available // MIB} MiB besides the weights, but one "
            f"canvas of max_model_len={limits.max_model_len} with max_num_batched_tokens="
            f"{limits.max_num_batched_tokens} and max_num_seqs={limits.max_num_seqs} needs "
            f"{-(-(fixed + needed) // MIB)} MiB; raise the first or lower one of the others"
            + ("; enforce_eager=true needs less" if recorded else "")
        )
    share = min(left // 8, left - least_arena) // SCORING_COPIES // MIB
    logits_mib = max(least_mib, min(LOGITS_MIB, share))
    slots = (left - logits_mib * MIB * SCORING_COPIES) // slot
    return DecoderOptions(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        arena_tokens=min(slots, 2 * limits.max_num_seqs * limits.max_model_len),
        logits_mib=logits_mib,
    )
