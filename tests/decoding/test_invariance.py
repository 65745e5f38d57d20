"""What a request gets does not depend on its neighbours: tokens, steps and log-probabilities are the same bits."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice

import pytest

from dlm.decoding.engines import ENGINES
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import SAMPLERS
from tests.decoding.drawing import draw_request, facts
from tests.decoding.worlds import BY_NAME, WIDE, WORLDS, World
from tests.threads import threads

pytestmark = pytest.mark.bits

MIXES = 200
"""In an ordinary run, over all models and dtypes."""
SLOW_MIXES = 1000
POOL = 24
WIDE_POOL = 12
WIDE_MIXES = 4
"""In an ordinary run, for each dtype and thread count."""
SLOW_WIDE_MIXES = 1050
DTYPES = ("float32", "float64", "bfloat16")
HALF = ("golden", "odd", "moe", "llada2", "nemotron")
"""Worlds that an ordinary run decodes in bfloat16 too."""
PAIRS = [(world.name, dtype) for world in WORLDS for dtype in DTYPES]
MIXED = [(name, dtype) for name, dtype in PAIRS if dtype != "bfloat16" or name in HALF]

Alone = dict[tuple[str, int], tuple[object, ...]]


@dataclass
class Witness:
    """What the mixes exercised."""

    widest: Counter[str] = field(default_factory=Counter)
    most_engines: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)
    joined_in_flight: int = 0
    waited_for_the_arena: int = 0
    mixes: int = 0
    compared: int = 0


SEEN = Witness()


def draw_pool(world: World, seed: int) -> list[Request]:
    """Requests for the world's model; fewer and with short answers where its forwards are dear."""
    chance = random.Random(f"{world.name} {seed}")
    drawn = (draw_request(chance, f"r{index}", world.checkpoint()) for index in count())
    if world is not WIDE:
        return list(islice(drawn, POOL))
    small = (one for one in drawn if one.params.initial_gen_length is None)
    return [
        replace(one, params=replace(one.params, gen_length=1 + index, max_nfe=None))
        for index, one in zip(range(12), small, strict=False)
    ]


def decode_alone(world: World, dtype: str, pool: Sequence[Request]) -> Alone:
    results: Alone = {}
    for request in pool:
        for completion in world.decoder(dtype, max_num_seqs=1, arena_tokens=512).run([request]):
            assert completion.error is None
            results[request.id, completion.sample] = facts(completion)
    return results


def decode_mixed(
    world: World, dtype: str, mix: Sequence[Request], chance: random.Random, seen: Witness
) -> list[Completion]:
    """Run `mix` in one decoder of random size, the requests joining at random steps."""
    decoder = world.decoder(
        dtype,
        max_num_seqs=chance.choice([5, 16, 32]),
        max_num_batched_tokens=chance.choice([64, 512, 8192]),
        arena_tokens=chance.choice([300, 1000, 4000]),
        logits_mib=1,
    )
    waiting = list(mix)
    done: list[Completion] = []
    while waiting or decoder.has_work:
        if waiting and (not decoder.has_work or chance.random() < 0.6):
            seen.joined_in_flight += decoder.stats.num_steps > 0 and decoder.has_work
            for _ in range(min(len(waiting), chance.randint(1, 8))):
                decoder.add(waiting.pop())
        finished, report = decoder.step()
        done += finished
        seen.waited_for_the_arena += decoder.scheduler.has_room and bool(decoder._waiting)
        if report.num_canvases >= 8:
            seen.most_engines[world.name] = max(seen.most_engines[world.name], len(report.engines))
        seen.widest[world.name] = max(seen.widest[world.name], report.num_canvases)
    assert decoder.arena.ranges.num_taken == 0
    return done


def compare_mixes(world: World, dtype: str, seed: int, number: int, seen: Witness) -> None:
    """Decode `number` mixes out of a pool and hold each completion to its solo run."""
    pool = draw_pool(world, seed)
    alone = decode_alone(world, dtype, pool)
    for index in range(number):
        chance = random.Random(f"{world.name} {dtype} {seed} {index}")
        mix = chance.sample(pool, chance.randint(len(pool) // 4, 5 * len(pool) // 6))
        completions = decode_mixed(world, dtype, mix, chance, seen)
        assert len(completions) == sum(request.params.n for request in mix)
        for completion in completions:
            assert facts(completion) == alone[completion.request_id, completion.sample]
        seen.compared += len(completions)
        seen.names |= {name for request in mix for name in (request.engine.name, request.sampler.name)}
    seen.mixes += number


@pytest.mark.parametrize(("name", "dtype"), MIXED)
def test_invariance_of_random_mixes(name: str, dtype: str) -> None:
    share, extra = divmod(MIXES, len(MIXED))
    compare_mixes(BY_NAME[name], dtype, 0, share + (MIXED.index((name, dtype)) < extra), SEEN)


def test_invariance_mixes_were_wide_and_varied() -> None:
    if SEEN.mixes < MIXES:
        pytest.skip("runs after all mixes of the same session")
    assert min(SEEN.widest[world.name] for world in WORLDS) >= 8
    assert min(SEEN.most_engines[name] for name in ("golden", "llada", "odd", "moe", "dream")) >= 3
    assert SEEN.names == {*ENGINES, *SAMPLERS}
    assert SEEN.joined_in_flight > 50
    assert SEEN.waited_for_the_arena > 50
    assert SEEN.compared > 2000


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_invariance_of_many_more_mixes(name: str, dtype: str, seed: int) -> None:
    compare_mixes(BY_NAME[name], dtype, seed, -(-SLOW_MIXES // (5 * len(PAIRS))), Witness())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("golden", "float32"), ("sdar", "float32"), ("odd", "float64"), ("moe", "float64"), ("llada2", "bfloat16")],
)
def test_invariance_under_two_threads(name: str, dtype: str) -> None:
    """A row does not depend on how many rows the threads share."""
    with threads(2):
        compare_mixes(BY_NAME[name], dtype, 99, 2, Witness())


@pytest.mark.parametrize(
    ("dtype", "used"), [("float32", 1), ("float32", 2), ("float64", 2), ("bfloat16", 1), ("bfloat16", 2)]
)
def test_invariance_at_the_width_of_a_model_for_use(dtype: str, used: int) -> None:
    seen = Witness()
    with threads(used):
        compare_mixes(WIDE, dtype, used, WIDE_MIXES, seen)
    assert seen.widest["wide"] >= 5


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 17))
@pytest.mark.parametrize("dtype", DTYPES)
def test_invariance_of_many_more_mixes_at_that_width_under_two_threads(dtype: str, seed: int) -> None:
    with threads(2):
        compare_mixes(WIDE, dtype, seed, SLOW_WIDE_MIXES // (7 * len(DTYPES)), Witness())
