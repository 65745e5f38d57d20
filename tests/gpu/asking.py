"""Requests and models for the tests on a GPU."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.models.io.loading import Checkpoint, random_checkpoint
from tests.gpu import CUDA


@cache
def model_on_cuda(size: str, dtype: str = "bfloat16") -> Checkpoint:
    """A random model whose confidences spread over 0..1."""
    made = random_checkpoint(size, seed=3, dtype=dtype, device=CUDA)
    made.backbone.lm_head.weight.mul_(30)
    return made


def decoder_of(model: Checkpoint, **options: Any) -> Decoder:
    return Decoder(model.backbone, model.special, DecoderOptions(**{"arena_tokens": 4096, **options}))


def asked(count: int, engine: Any, sampler: Any, **params: Any) -> list[Request]:
    """Prompts of random lengths; greedy unless `params` say otherwise."""
    chance, made = random.Random(count), []
    for index in range(count):
        prompt = tuple(chance.randrange(500) for _ in range(chance.randint(3, 60)))
        given = {"gen_length": 32, "block_length": 8, "steps": 32, "temperature": 0.0, "seed": index, "record": True}
        made.append(Request(str(index), prompt, SamplingParams(**{**given, **params}), engine, sampler))
    return made
