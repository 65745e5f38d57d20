"""How much the decoder may hold, from the memory of the device and what a user lets it take.

Beside the weights a forward needs: the arena of keys and values; rows of logits and what is made of them; the
activations of the packed batch; what some algorithms keep of a canvas between two forwards; and, where forwards are
recorded, what the recordings hold. All but the arena are bounded first, and it takes no more than what then remains.
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
"""More rows of logits than this holds at once are not faster."""

SCORING_COPIES = 24
"""Bytes that scoring holds for each byte of a row of logits at worst: with temperature and top-p the row exists in
float64, sorted, with its indices, its probabilities and their sums (18 measured on a CPU; sorts on a GPU add some)."""

RECORDING_MIB = 4
"""What CUDA itself keeps for one recording, hundreds of kernels with their arguments: assumed, not measured."""


@dataclass(frozen=True)
class Limits:
    """What a user lets the decoder hold.

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
    """Bytes that the decoder may take on each device besides the weights, which are not loaded yet.

    On CUDA `utilization` times the memory of the device, less what is in use on it, by whomever, and the weights; of
    several devices that which has least. On a CPU `utilization` times what the weights leave free, which `parallel`
    processes share.
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
    """Bytes of a model's parameters; nothing is allocated."""
    with torch.device("meta"):
        backbone = Backbone(config)
    return sum(parameter.numel() for parameter in backbone.parameters()) * dtype.itemsize


def activation_bytes(config: BackboneConfig, dtype: torch.dtype, rows: int) -> int:
    """Upper estimate of what one forward of `rows` tokens holds at once, besides arena and logits."""
    size, wide = dtype.itemsize, max(4, dtype.itemsize)
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    inner = config.intermediate_size
    if config.experts is not None:
        experts = config.experts
        routed = experts.top_k * (2 * experts.inner_size + config.hidden_size)
        inner = max(inner, routed + experts.shared_size)
    return rows * (config.hidden_size * (4 * size + 2 * wide) + heads * (size + 2 * wide) + inner * 4 * size)


def widest_bytes(config: BackboneConfig, dtype: torch.dtype, rows: int) -> int:
    """The largest single tensor of a forward of `rows` tokens."""
    wide = max(4, dtype.itemsize)
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    projected = max(heads, 2 * config.intermediate_size)
    if config.experts is not None:
        routed = config.experts.top_k * max(2 * config.experts.inner_size, config.hidden_size)
        projected = max(projected, routed, 2 * config.experts.shared_size)
    return rows * max(projected * dtype.itemsize, max(config.num_heads * config.head_dim, config.hidden_size) * wide)


def records(device: torch.device, dtype: torch.dtype, parallel: int = 1) -> bool:
    """Whether a decoder there may record forwards, unless told not to (`dlm.decoding.cuda.graphs.choose_recorder`)."""
    return device.type == "cuda" and parallel == 1 and choose_backend(device, dtype) is VarlenAttention


def recorded_bytes(config: BackboneConfig, dtype: torch.dtype, limits: Limits) -> int:
    """Upper estimate of what recorded forwards hold, whatever the arena's size (`slot_bytes` has the rest).

    All lie in one pool, in which one reuses what another left. At worst they are recorded by size, the smallest first:
    then the widest tensor of each finds no place and takes a new one, and all else lies where wider ones were.
    """
    most = min(MAX_ROWS, max(limits.max_num_batched_tokens, 2 * limits.max_model_len))
    sizes = frame_rows(most)
    pool = activation_bytes(config, dtype, sizes[-1])
    pool += sum(widest_bytes(config, dtype, rows) for rows in sizes[:-1])
    inputs = MAX_RECORDINGS * 8 * 8 * sizes[-1]  # at most eight numbers of 64 bits a row, keys apart
    output = MAX_ROWS * config.hidden_size * dtype.itemsize
    return pool + inputs + output + MAX_RECORDINGS * RECORDING_MIB * MIB


def slot_bytes(config: BackboneConfig, dtype: torch.dtype, *, recorded: bool) -> int:
    """What a slot of the arena costs: keys and values of all layers, and what is made of them where kernels cannot read
    them in place: a gathered copy of one layer's, another one in the recordings' pool, and in each recording the
    numbers of its slots. Recordings round up by a quarter."""
    layer = config.kv_values_per_token * dtype.itemsize // config.num_layers
    more = -(-5 * (layer + 8 * MAX_RECORDINGS) // 4) if recorded else 0
    return layer * (config.num_layers + 1) + more


def kept_bytes(config: BackboneConfig, dtype: torch.dtype, limits: Limits) -> int:
    """The most that canvases keep besides keys and values: two rows of hidden states for each position, of `klass` with
    guidance or of soft inputs."""
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
    """Sizes of arena and logits that fit in `available` bytes together with the activations and what canvases keep.

    The arena is no larger than `max_num_seqs` canvases of `max_model_len` can use, each with its unconditional pair.

    Args:
        whole: architecture of the model.
        dtype: of its weights, and so of keys and values.
        limits: what the user lets the decoder hold.
        available: bytes, on each device.
        parallel: devices that share the model.
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
            f"gpu_memory_utilization={limits.utilization} leaves {available // MIB} MiB beside the weights, and one "
            f"canvas of max_model_len={limits.max_model_len} with max_num_batched_tokens="
            f"{limits.max_num_batched_tokens} and what max_num_seqs={limits.max_num_seqs} may keep needs "
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
