"""Random requests over everything that the heart offers, and the tiny model that decodes them."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from dlm.decoding.engines import DualCache, Engine, Full, PrefixCache
from dlm.decoding.request import Completion, Request, SamplingParams
from dlm.decoding.samplers import DInferThreshold, Factor, Fixed, Sampler, Threshold
from dlm.models.families import SpecialTokens
from dlm.models.loading import Checkpoint, load_checkpoint

FOLDER = Path(__file__).parents[1] / "goldens" / "llada_eos"
MASK, EOS, EOT = 511, 510, 509
SPECIAL = SpecialTokens(MASK, EOS, EOT)


@cache
def tiny_model(dtype: str = "float32") -> Checkpoint:
    return load_checkpoint(FOLDER, dtype=dtype)


def draw_engine(chance: random.Random) -> Engine:
    return chance.choice([Full(), PrefixCache(), DualCache()])


def draw_sampler(chance: random.Random) -> Sampler:
    orders = [Fixed(order) for order in ("low_confidence", "random", "entropy", "margin")]
    bars = [Threshold(chance.choice([0.2, 0.5, 0.9])), DInferThreshold(chance.choice([0.3, 0.9]))]
    return chance.choice([*orders, *bars, Factor(chance.choice([0.5, 1.0, 2.0]))])


def draw_params(chance: random.Random) -> SamplingParams:
    block_length = chance.choice([3, 8, 16])
    gen_length = chance.randint(1, 40)
    blocks = -(-gen_length // block_length) + 1
    warm = chance.random() < 0.5
    return SamplingParams(
        gen_length=gen_length,
        block_length=block_length,
        steps=chance.randint(blocks, 48),
        temperature=chance.choice([0.3, 0.7, 1.0, 1.5]) if warm else 0.0,
        top_k=chance.choice([0, 5, 50]) if warm else 0,
        top_p=chance.choice([1.0, 0.9, 0.5]) if warm else 1.0,
        cfg_scale=chance.choice([0.0, 0.0, 0.0, 1.5]),
        max_nfe=chance.choice([None, None, blocks + chance.randint(0, 6)]),
        max_tokens=chance.choice([None, 5]),
        ignore_eos=chance.random() < 0.5,
        logits_eos_inf=chance.random() < 0.15,
        confidence_eos_eot_inf=chance.random() < 0.15,
        seed=chance.randint(0, 1000),
        n=chance.choice([1, 1, 1, 2]),
        record=chance.random() < 0.7,
    )


def draw_request(chance: random.Random, name: str) -> Request:
    prompt = [chance.randrange(509) for _ in range(chance.randint(1, 60))]
    params = draw_params(chance)
    if chance.random() < 0.2:
        for place in chance.sample(range(len(prompt)), min(3, len(prompt))):
            prompt[place] = MASK
        blocks = -(-(len(prompt) + params.gen_length) // params.block_length)
        params = SamplingParams(**{**vars(params), "steps": 48, "max_nfe": params.max_nfe and params.max_nfe + blocks})
    return Request(name, tuple(prompt), params, draw_engine(chance), draw_sampler(chance))


def facts(completion: Completion) -> tuple[object, ...]:
    """Everything about a completion but how long it took; NaN-safe and bitwise for log-probabilities."""
    logprobs = completion.logprobs and tuple(value.hex() for value in completion.logprobs)
    return (
        completion.request_id,
        completion.sample,
        completion.seed,
        completion.prompt_ids,
        completion.token_ids,
        completion.canvas_ids,
        completion.finish_reason,
        completion.nfe,
        completion.positions,
        completion.step_map,
        logprobs,
        completion.error,
    )
