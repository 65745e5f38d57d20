"""Distributed checkpoints for tests: a small model's tensors as trainers save them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

GOLDEN = Path(__file__).parents[1] / "goldens" / "llada"


def copy_golden(folder: Path) -> Path:
    """A small checkpoint in Hugging Face's format."""
    return Path(shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.jsonl", "logits*")))


def golden_tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "model.safetensors")


def save_dcp(state: Mapping[str, Any], folder: Path) -> Path:
    """A DCP folder written by this process alone."""
    with warnings.catch_warnings():
        # torch warns that a single process saves, also where that was asked for.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.save(dict(state), checkpoint_id=folder, no_dist=True)
    return folder


def renamed(rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(name): tensor for name, tensor in golden_tensors().items()}


def save_by_two_ranks(folder: Path, scratch: Path) -> Path:
    """A DCP folder written by two gloo processes: sharded weights, one replicated, and the optimizer's state beside."""
    mp.spawn(_rank, args=(folder, scratch / "rendezvous"), nprocs=2)
    return folder


def _rank(rank: int, folder: Path, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model, moments = {}, {}
    for name, tensor in golden_tensors().items():
        placement = [Replicate()] if name.endswith("ln_f.weight") else [Shard(tensor.dim() - 1)]
        model[name] = distribute_tensor(tensor, mesh, placement)
        moments[name] = {"exp_avg": distribute_tensor(torch.ones_like(tensor), mesh, placement), "step": 7}
    state = {"model": model, "optimizer": {"state": moments, "param_groups": [{"lr": 0.1}]}, "epoch": 3}
    dcp.save(state, checkpoint_id=folder)
    dist.destroy_process_group()
