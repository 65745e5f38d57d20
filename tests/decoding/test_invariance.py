"""What a request gets does not depend on its neighbours: tokens, steps and log-probabilities are the same bits."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from dlm.decoding.decoder import Decoder, DecoderOptions, StepReport
from dlm.decoding.request import Completion, Request
from tests.decoding.drawing import SPECIAL, draw_request, facts, tiny_model

MIXES = 200
POOL = 120
PARTS = 10

Alone = dict[tuple[str, int], tuple[object, ...]]


@dataclass
class Witness:
    """What the mixes of one dtype exercised."""

    alone: Alone
    pool: list[Request]
    widest: int = 0
    most_engines: int = 0
    joined_in_flight: int = 0
    compared: int = 0
    reports: list[StepReport] = field(default_factory=list)


def decode_alone(pool: list[Request], dtype: str) -> Alone:
    results: Alone = {}
    for request in pool:
        model = tiny_model(dtype)
        decoder = Decoder(model.backbone, SPECIAL, DecoderOptions(max_num_seqs=1, arena_tokens=512, poison=True))
        for completion in decoder.run([request]):
            results[request.id, completion.sample] = facts(completion)
    return results


@pytest.fixture(scope="module", params=["float32", "float64"])
def witness(request: pytest.FixtureRequest) -> Witness:
    chance = random.Random(2026)
    pool = [draw_request(chance, f"r{index}") for index in range(POOL)]
    return Witness(decode_alone(pool, request.param), pool)


def decode_mixed(mix: list[Request], dtype: str, chance: random.Random, seen: Witness) -> list[Completion]:
    """Run `mix` in one decoder of random size, the requests joining at random steps."""
    options = DecoderOptions(
        max_num_seqs=chance.choice([2, 5, 16, 32]),
        max_num_batched_tokens=chance.choice([64, 256, 8192]),
        arena_tokens=chance.choice([300, 1000, 4000]),
        logits_mib=1,
        poison=True,
    )
    decoder = Decoder(tiny_model(dtype).backbone, SPECIAL, options)
    waiting = list(mix)
    done: list[Completion] = []
    while waiting or decoder.has_work:
        if waiting and (not decoder.has_work or chance.random() < 0.6):
            seen.joined_in_flight += decoder.stats.num_steps > 0 and decoder.has_work
            for _ in range(min(len(waiting), chance.randint(1, 6))):
                decoder.add(waiting.pop())
        finished, report = decoder.step()
        done += finished
        if report.num_canvases >= 8:
            seen.most_engines = max(seen.most_engines, len(report.engines))
        seen.widest = max(seen.widest, report.num_canvases)
    assert decoder.arena.ranges.num_taken == 0
    return done


@pytest.mark.parametrize("part", range(PARTS))
def test_invariance_of_random_mixes(witness: Witness, part: int, request: pytest.FixtureRequest) -> None:
    dtype = request.node.callspec.params["witness"]
    for index in range(part * MIXES // PARTS, (part + 1) * MIXES // PARTS):
        chance = random.Random(index)
        mix = chance.sample(witness.pool, chance.randint(4, 20))
        completions = decode_mixed(mix, dtype, chance, witness)
        assert len(completions) == sum(item.params.n for item in mix)
        for completion in completions:
            assert facts(completion) == witness.alone[completion.request_id, completion.sample]
        witness.compared += len(completions)


def test_invariance_mixes_were_wide_and_varied(witness: Witness) -> None:
    if not witness.compared:
        pytest.skip("runs after the mixes of the same session")
    assert witness.widest >= 8
    assert witness.most_engines >= 3
    assert witness.joined_in_flight > 50
    assert witness.compared > 1000


def test_invariance_under_two_threads() -> None:
    """The reductions of a row do not depend on how many rows the threads share."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        chance = random.Random(7)
        pool = [draw_request(chance, f"t{index}") for index in range(24)]
        alone = decode_alone(pool, "float32")
        seen = Witness(alone, pool)
        for completion in decode_mixed(pool, "float32", chance, seen):
            assert facts(completion) == alone[completion.request_id, completion.sample]
    finally:
        torch.set_num_threads(before)
