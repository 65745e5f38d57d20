"""`ar` is plain causal decoding, and `linear_spec` gives the same tokens."""

from __future__ import annotations

import random

import pytest
import torch

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import Autoregressive, Engine
from dlm.decoding.engines import LinearSpec as LinearSpecEngine
from dlm.decoding.options import DecoderOptions
from dlm.decoding.request import Completion, Request, SamplingParams
from dlm.decoding.samplers import Leftmost, LinearSpec, Sampler
from dlm.models.attention import NaiveAttention
from dlm.models.loading import Checkpoint, random_checkpoint
from dlm.models.segments import Segment

GEN = 21


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    """A tiny Nemotron whose drafts are right now and then: heads that look at their own row mostly."""
    model = random_checkpoint("tiny_nemotron", seed=3, dtype="float64")
    with torch.no_grad():
        model.backbone.lm_head.weight.mul_(8)
    return model


def decode(model: Checkpoint, prompt: tuple[int, ...], engine: Engine, sampler: Sampler, block: int) -> Completion:
    params = SamplingParams(gen_length=GEN, block_length=block, temperature=0.0, ignore_eos=True)
    decoder = Decoder(model.backbone, model.special, DecoderOptions(max_num_seqs=1, arena_tokens=64, poison=True))
    return next(decoder.run([Request("a", prompt, params, engine, sampler)]))


def greedy(model: Checkpoint, prompt: tuple[int, ...]) -> list[int]:
    """One causal forward over everything for each token."""
    config, tokens = model.backbone.config, list(prompt)
    for _ in range(GEN):
        count = len(tokens)
        shape = (2, config.num_layers, count, config.num_kv_heads, config.head_dim)
        with torch.inference_mode():
            arena = torch.zeros(shape, dtype=torch.float64)
            attention = NaiveAttention([Segment(0, count, 0, 0, count, causal=True)], *arena)
            hidden = model.backbone(torch.tensor(tokens), torch.arange(count), attention)
            logits = model.backbone.head(hidden)[-1]
            logits[model.special.mask_id] = -torch.inf
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("block", [1, 2, 7, 32])
@pytest.mark.parametrize("seed", range(3))
def test_both_equal_plain_causal_decoding(model: Checkpoint, seed: int, block: int) -> None:
    prompt = tuple(random.Random(seed).randrange(500) for _ in range(1 + 4 * seed))
    expected = greedy(model, prompt)
    plain = decode(model, prompt, Autoregressive(), Leftmost(), block)
    drafted = decode(model, prompt, LinearSpecEngine(), LinearSpec(), block)
    assert list(plain.canvas_ids) == expected
    assert list(drafted.canvas_ids) == expected
    assert plain.nfe == GEN
    assert plain.positions == len(prompt) + GEN - 1


def test_drafts_that_are_right_save_forwards() -> None:
    """A model that says the same token everywhere drafts what it then verifies."""
    model = random_checkpoint("tiny_nemotron", seed=3, dtype="float64")
    with torch.no_grad():
        model.backbone.lm_head.weight.zero_()
    prompt = (5, 6, 7)
    drafted = decode(model, prompt, LinearSpecEngine(), LinearSpec(), 8)
    assert set(drafted.canvas_ids) == {0}
    # The prompt gives one token; then each draft and its check give eight, and the last pair what is left.
    assert drafted.nfe == 1 + 2 * 3


def test_it_ends_with_the_answer(model: Checkpoint) -> None:
    prompt = (1, 2, 3)
    expected = greedy(model, prompt)
    special = type(model.special)(model.special.mask_id, expected[4])
    params = SamplingParams(gen_length=GEN, block_length=7, temperature=0.0)
    decoder = Decoder(model.backbone, special, DecoderOptions(max_num_seqs=1, arena_tokens=64))
    request = Request("a", prompt, params, LinearSpecEngine(), LinearSpec())
    done = next(decoder.run([request]))
    end = expected.index(expected[4])
    assert (list(done.token_ids), done.finish_reason) == (expected[:end], "stop")
    assert model.special.mask_id in done.canvas_ids
