"""Tiny models to score with, and forwards over everything to hold the scores to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from dlm.likelihood import Likelihood
from dlm.models.families import SpecialTokens
from dlm.models.io.loading import Checkpoint, empty_backbone
from dlm.models.sizes import SIZES
from tests.decoding.worlds import BY_NAME, stir
from tests.models.attention.windows import Mask, WindowAttention, block_causal, everything

FAMILIES = ("llada", "dream", "llada2", "sdar", "nemotron")
VOCAB, MASK = 11, 10


@cache
def small(family: str) -> Checkpoint:
    """A float64 model of 10 tokens and a mask, one with blocks in blocks of 4."""
    size = {"llada": "tiny", "dream": "tiny_dream", "llada2": "tiny_llada2"}.get(family, f"tiny_{family}")
    config = replace(SIZES[size], vocab_size=VOCAB)
    if config.block_length is not None:
        config = replace(config, block_length=4)
    backbone = empty_backbone(config, torch.float64, "cpu")
    backbone.initialize(2)
    made = Checkpoint(backbone.eval().requires_grad_(False), BY_NAME[family].checkpoint().family, special(), None)
    stir(made)
    with torch.no_grad():
        backbone.lm_head.weight *= 0.2  # so that no probability is nearly 1
    return made


def special() -> SpecialTokens:
    return SpecialTokens(mask_id=MASK, eos_id=9)


def likelihood(family: str, **options: int) -> Likelihood:
    return Likelihood(small(family).backbone, special(), **options)


def naive(checkpoint: Checkpoint, tokens: Sequence[int], mask: Mask = everything) -> Tensor:
    """`[length, vocab]` log-probabilities of one canvas, row by row as the model gives them."""
    backbone = checkpoint.backbone
    hidden = backbone(torch.tensor(tokens), torch.arange(len(tokens)), WindowAttention([len(tokens)], mask))
    logits: Tensor = backbone.head(hidden)
    return logits.log_softmax(-1)


def predicted(
    checkpoint: Checkpoint, tokens: Sequence[int], position: int, token: int, mask: Mask = everything
) -> float:
    """Log-probability of `token` at a position of one canvas."""
    row = max(position - 1, 0) if checkpoint.backbone.config.shifted else position
    with torch.no_grad():
        return float(naive(checkpoint, tokens, mask)[row, token])


def answered(family: str, tokens: Sequence[int], hidden: Sequence[int], asked: int, first: int) -> float:
    """The definition: log-probability of the token at `asked` with the positions `hidden` masked, as a forward over
    everything gives it. `first` is where the blocks of a model with a causal context begin."""
    model = small(family)
    state = [MASK if place in hidden else token for place, token in enumerate(tokens)]
    attention = model.backbone.config.attention
    if attention == "bidirectional":
        return predicted(model, state, asked, tokens[asked])
    start = asked // 4 * 4 if attention == "block_causal" else first + (asked - first) // 4 * 4
    block = state[start : start + 4]
    if attention == "block_causal":
        return predicted(
            model, [*tokens[:start], *block, *[MASK] * (4 - len(block))], asked, tokens[asked], block_causal(4)
        )
    return predicted(model, [*tokens[:start], *block], asked, tokens[asked], causal_before(start))


def causal_before(start: int) -> Mask:
    """The block that begins at `start` sees all before it and itself; what lies before is causal."""
    return lambda query, key: (key <= query) | ((query >= start) & (key >= start))
