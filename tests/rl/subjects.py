"""Models, prompts and parameters for rollouts."""

from __future__ import annotations

import copy
from typing import Any

import torch

from dlm.decoding.options import DecoderOptions
from dlm.models.backbone import Backbone
from dlm.models.io.loading import Checkpoint
from dlm.models.io.naming import family_places
from dlm.rl import Rollouts
from dlm.sampling_params import SamplingParams
from tests.decoding.worlds import BY_NAME, WORLDS

FAMILIES = tuple(world.name for world in WORLDS if world.name not in ("golden", "odd"))
PROMPTS = ((5, 6, 7, 8), (11, 12), tuple(range(20, 41)))
WARM = SamplingParams(gen_length=24, block_length=8, steps=24, temperature=0.9, seed=3)
OPTIONS = DecoderOptions(max_num_seqs=5, arena_tokens=2000, poison=True)


def fresh(name: str = "golden", *, stirred: float = 0.0) -> Checkpoint:
    """A model of its own, with `stirred` noise on its weights."""
    model = BY_NAME[name].checkpoint()
    backbone = copy.deepcopy(model.backbone)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += stirred * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean()
    return Checkpoint(backbone, model.family, model.special, None)


def rollouts_of(name: str = "golden", **arguments: Any) -> Rollouts:
    return Rollouts(fresh(name), **{"options": OPTIONS, **arguments})


def stored(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The weights under the family's names."""
    places = family_places(checkpoint.family, checkpoint.backbone)
    return {name: place.detach().clone() for name, place in places.items()}


def bits(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
