"""How much the decoder may hold, from the memory of the device and what a user lets it take.

Beside the weights a forward needs: the arena of keys and values; rows of logits and what is made of them; the
activations of the packed batch; and what some algorithms keep of a canvas between two forwards. The last three are
bounded first, the arena takes no more than what then remains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlm.decoding.options import DecoderOptions
from dlm.errors import ConfigError
from dlm.models.architecture import BackboneConfig
from dlm.models.backbone import Backbone
from dlm.models.devices import free_memory
from dlm.models.parallel import Shard
from dlm.parallel_group import launched

MIB = 1 << 20

LOGITS_MIB = 512
"""More rows of logits than this holds at once are not faster."""

SCORING_COPIES = 24
"""Bytes that scoring holds for each byte of a row of logits at worst: with temperature and top-p the row exists in
float64, sorted, with its indices, its probabilities and their sums (18 measured on a CPU; sorts on a GPU add some)."""


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


def kept_bytes(config: BackboneConfig, dtype: torch.dtype, limits: Limits) -> int:
    """The most that canvases keep besides keys and values: two rows of hidden states for each position, of `klass` with
    guidance or of soft inputs."""
    return 2 * limits.max_num_seqs * limits.max_model_len * config.hidden_size * dtype.itemsize


def plan_memory(
    whole: BackboneConfig, dtype: torch.dtype, limits: Limits, available: int, parallel: int = 1
) -> DecoderOptions:
    """Sizes of arena and logits that fit in `available` bytes together with the activations and what canvases keep.

    The arena is no larger than `max_num_seqs` canvases of `max_model_len` can use, each with its guided twin.

    Args:
        whole: architecture of the model.
        dtype: of its weights, and so of keys and values.
        limits: what the user lets the decoder hold.
        available: bytes, on each device.
        parallel: devices that share the model.

    Raises:
        ConfigError: not even one canvas of `max_model_len` fits; the message names both sizes.
    """
    config = Shard(0, parallel).config(whole)
    rows = max(limits.max_num_batched_tokens, 2 * limits.max_model_len)
    fixed = activation_bytes(config, dtype, rows) + kept_bytes(config, dtype, limits)
    row_bytes = config.vocab_size * max(4, dtype.itemsize)
    # Flash kernels read one layer's keys and values from a gathered copy.
    slot_bytes = config.kv_values_per_token * dtype.itemsize * (config.num_layers + 1) // config.num_layers
    least_arena, least_mib = limits.max_model_len * slot_bytes, -(-4 * row_bytes // MIB)
    left = available - fixed
    needed = least_arena + least_mib * MIB * SCORING_COPIES
    if left < needed:
        raise ConfigError(
            f"gpu_memory_utilization={limits.utilization} leaves {available // MIB} MiB beside the weights, and one "
            f"canvas of max_model_len={limits.max_model_len} with max_num_batched_tokens="
            f"{limits.max_num_batched_tokens} and what max_num_seqs={limits.max_num_seqs} may keep needs "
            f"{-(-(fixed + needed) // MIB)} MiB; raise the first or lower one of the others"
        )
    share = min(left // 8, left - least_arena) // SCORING_COPIES // MIB
    logits_mib = max(least_mib, min(LOGITS_MIB, share))
    slots = (left - logits_mib * MIB * SCORING_COPIES) // slot_bytes
    return DecoderOptions(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        arena_tokens=min(slots, 2 * limits.max_num_seqs * limits.max_model_len),
        logits_mib=logits_mib,
    )
