"""Tiny models of every family to decode with: several vocabularies, also such that no vector register divides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions
from dlm.models.families import FAMILIES, SpecialTokens
from dlm.models.io.loading import DTYPES, Checkpoint, empty_backbone, load_checkpoint, random_checkpoint
from dlm.models.sizes import SIZES, family_of_size

FOLDER = Path(__file__).parents[1] / "goldens" / "llada_eos"
MASK, EOS, EOT = 511, 510, 509
SPECIAL = SpecialTokens(MASK, EOS, EOT)
SHARPNESS = 25
"""Factor on a random head, so that confidences spread over 0..1 and not around 1 / vocabulary."""
LIKELY = 2.0
"""Factor on the rows of the special ids, so that the model proposes them now and then."""


@dataclass(frozen=True)
class World:
    """A named size and what is changed of it.

    Attributes:
        name: in test ids.
        size: a key of `SIZES`; empty for the golden checkpoint `llada_eos`.
        changes: fields of its architecture, such as `vocab_size`.
    """

    name: str
    size: str
    changes: tuple[tuple[str, int], ...] = ()

    def checkpoint(self, dtype: str = "float32") -> Checkpoint:
        return _checkpoint(self, dtype)

    def decoder(self, dtype: str = "float32", **options: Any) -> Decoder:
        """A decoder whose freed ranges are poisoned."""
        model = self.checkpoint(dtype)
        return Decoder(model.backbone, model.special, DecoderOptions(**{"poison": True, **options}))


WORLDS = (
    World("golden", ""),
    World("llada", "tiny"),
    World("odd", "tiny", (("vocab_size", 509), ("hidden_size", 60), ("intermediate_size", 100), ("head_dim", 14))),
    World("moe", "tiny_moe", (("vocab_size", 1000),)),
    World("llada2", "tiny_llada2", (("vocab_size", 330),)),
    World("dream", "tiny_dream", (("vocab_size", 778),)),
    World("sdar", "tiny_sdar"),
    World("nemotron", "tiny_nemotron", (("vocab_size", 600),)),
)
WIDE = World("wide", "57m", (("num_layers", 2), ("vocab_size", 2003), ("max_positions", 512)))
"""As wide as a model for use: there libraries take other kernels for few rows than for many."""
BY_NAME = {world.name: world for world in WORLDS}


@cache
def _checkpoint(world: World, dtype: str) -> Checkpoint:
    if not world.size:
        return load_checkpoint(FOLDER, dtype=dtype, special=SPECIAL)
    if not world.changes:
        made = random_checkpoint(world.size, seed=5, dtype=dtype)
    else:
        config = replace(SIZES[world.size], **dict(world.changes))  # type: ignore[arg-type]  # all changes are numbers
        backbone = empty_backbone(config, DTYPES[dtype], "cpu")
        backbone.initialize(5)
        family = next(family for family in FAMILIES if family.name == family_of_size(world.size))
        last = config.vocab_size - 1
        special = SpecialTokens(mask_id=last, eos_id=last - 2, eot_id=last - 1)
        made = Checkpoint(backbone.eval().requires_grad_(False), family, special, None)
    stir(made)
    return made


def stir(checkpoint: Checkpoint) -> None:
    """Make a random checkpoint sure of itself here and there, and let its layers matter: plain initial weights give
    nearly the same logits everywhere."""
    backbone, special = checkpoint.backbone, checkpoint.special
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            elif name not in ("lm_head.weight", "embedding.weight"):
                parameter *= 6
        backbone.embedding.weight *= 40
        backbone.lm_head.weight *= SHARPNESS
        for token in (special.mask_id, *special.end_ids):
            backbone.lm_head.weight[token] *= LIKELY


def tiny_model(dtype: str = "float32") -> Checkpoint:
    """The golden checkpoint that proposes end tokens."""
    return WORLDS[0].checkpoint(dtype)
