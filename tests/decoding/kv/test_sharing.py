"""Samples of one prompt take over what the first one computed of it, with the same bits and fewer positions."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import Autoregressive, BlockCausal, CausalCommit
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Leftmost, Sdar, Threshold
from dlm.models.io.loading import random_checkpoint

PROMPT = tuple(random.Random(1).randrange(500) for _ in range(23))
PAIRS: list[Any] = [
    pytest.param("tiny_sdar", BlockCausal(), Sdar(), 20, id="block_causal"),
    pytest.param("tiny_nemotron", CausalCommit(), Threshold(0.9), 22, id="causal_commit"),
    pytest.param("tiny_nemotron", Autoregressive(), Leftmost(), 22, id="autoregressive"),
]


def decode(size: str, request: Request, seqs: int, arena: int) -> tuple[Decoder, list[Completion]]:
    model = random_checkpoint(size, seed=3)
    decoder = Decoder(model.backbone, model.special, DecoderOptions(max_num_seqs=seqs, arena_tokens=arena, poison=True))
    return decoder, sorted(decoder.run([request]), key=lambda completion: completion.sample)


@pytest.mark.parametrize("seqs", [1, 2, 8])
@pytest.mark.parametrize(("size", "engine", "sampler", "shared"), PAIRS)
def test_samples_share_their_prompt(size: str, engine: Any, sampler: Any, shared: int, seqs: int) -> None:
    params = SamplingParams(gen_length=10, block_length=5, temperature=0.9, seed=5, n=4, record=True)
    request = Request("a", PROMPT, params, engine, sampler)
    decoder, together = decode(size, request, seqs, 400)
    _, apart = decode(size, request, seqs, 40)  # no room for a copy
    assert [one.canvas_ids for one in together] == [one.canvas_ids for one in apart]
    assert str([one.logprobs for one in together]) == str([one.logprobs for one in apart])
    assert len({one.canvas_ids for one in together}) == 4
    saved = [alone.positions - one.positions for one, alone in zip(together, apart, strict=True)]
    assert saved == [0, shared, shared, shared]
    assert decoder.arena.ranges.num_taken == 0


def test_what_is_shared_comes_back_when_a_run_is_dropped() -> None:
    model = random_checkpoint("tiny_sdar", seed=3)
    decoder = Decoder(model.backbone, model.special, DecoderOptions(max_num_seqs=2, arena_tokens=400))
    params = SamplingParams(gen_length=10, block_length=5, temperature=0.9, seed=5, n=4)
    decoder.add(Request("a", PROMPT, params, BlockCausal(), Sdar()))
    decoder.step()
    assert decoder.arena.ranges.num_taken == 35 + 20
    decoder.drop_all()
    assert decoder.arena.ranges.num_taken == 0
