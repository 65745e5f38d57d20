"""What `sparse` keeps: fewer bytes and fewer keys, those that the definition names; and what the arena does with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dlm.decoding.engines import DualCache, Engine, Full, Sparse
from dlm.decoding.request import Completion, Request, SamplingParams
from dlm.decoding.samplers import Fixed, Threshold
from dlm.models.attention import NaiveAttention, SdpaAttention
from dlm.models.segments import Retain, Segment
from dlm.models.thinning import thinned
from tests.decoding.worlds import BY_NAME

WORLD = BY_NAME["llada"]
PARAMS = SamplingParams(gen_length=16, block_length=8, steps=16, temperature=0.0, ignore_eos=True, seed=1, record=True)
PROMPT = tuple(range(5, 45))
"""Of 56 positions 48 lie outside a block."""


def decode(engine: Engine, **options: Any) -> tuple[Completion, int, list[int]]:
    """The answer, the arena slots in use, and the keys of each segment that read the arena."""
    keys: list[int] = []

    class Counting(SdpaAttention):
        def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if layer == 0:
                keys.extend(segment.num_keys for segment in self.segments if segment.key_start is not None)
            return super().__call__(layer, query, key, value)

    decoder = WORLD.decoder(arena_tokens=200, **options)
    decoder.backend = Counting
    request = Request("a", PROMPT, PARAMS, engine, Fixed())
    (completion,) = decoder.run([request])
    assert completion.error is None
    decoder.add(request)
    decoder.step()
    held = decoder.arena.ranges.num_taken
    decoder.drop_all()
    return completion, held, keys


def test_slots_held_and_keys_read_fall_with_the_ratio() -> None:
    held, read = {}, {}
    for ratio in (1.0, 0.5, 0.25, 0.0):
        _, held[ratio], keys = decode(Sparse(ratio, delay_step=1))
        assert len(keys) == 2 * 6  # eight steps a block, two of them whole
        (read[ratio],) = set(keys)
    assert held == read == {1.0: 56, 0.5: 32, 0.25: 20, 0.0: 8}
    _, dual, keys = decode(DualCache())
    assert (dual, set(keys)) == (56, {56})
    config = WORLD.checkpoint().backbone.config
    assert config.kv_values_per_token * 4 * held[0.5] == 2 * 2 * 64 * 4 * 32  # bytes: k and v, layers, width, float32


def test_everything_kept_reads_what_dual_cache_reads() -> None:
    """With nothing left out `sparse` differs from `dual_cache` in the order of the keys, so in the last bits alone."""
    sparse, dual = (decode(engine)[0] for engine in (Sparse(1.0, delay_step=0), DualCache()))
    assert sparse.canvas_ids == dual.canvas_ids
    assert sparse.step_map == dual.step_map
    assert sparse.logprobs is not None
    np.testing.assert_allclose(sparse.logprobs, dual.logprobs, atol=1e-4, rtol=1e-4)


def test_leaving_keys_out_changes_the_answer() -> None:
    full, kept, none = (decode(engine)[0].logprobs for engine in (Full(), Sparse(0.5), Sparse(0.0)))
    assert len({full, kept, none}) == 3


def naive(query: Tensor, key: Tensor, retain: Retain) -> list[dict[int, float]]:
    """For each key/value head the score of each row outside the block, by plain loops over the definition."""
    rows, kv_heads = key.shape[0], key.shape[1]
    group = query.shape[1] // kv_heads
    outside = [row for row in range(rows) if not retain.start <= row < retain.stop]
    table = []
    for head in range(kv_heads):
        mine = query[retain.start : retain.stop, head * group : (head + 1) * group]
        mean = mine.reshape(-1, query.shape[2]).mean(0)
        table.append([float(key[row, head] @ mean) for row in outside])
    if not retain.per_head:
        table = [[sum(column) / kv_heads for column in zip(*table, strict=True)]] * kv_heads
    half = retain.pool // 2
    return [{row: max(scores[max(0, i - half) : i + half + 1]) for i, row in enumerate(outside)} for scores in table]


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("pool", [1, 3])
@pytest.mark.parametrize(("kv_heads", "count"), [(4, 5), (2, 9), (2, 15)])
def test_heads_keep_what_the_definition_names(kv_heads: int, count: int, pool: int, per_head: bool) -> None:
    """Values carry their row and head, so that what stayed can be read off. Pooling makes ties between neighbours, of
    which any may stay: scores are compared, not rows."""
    generator = torch.Generator().manual_seed(count)
    query = torch.randn(20, 4, 8, generator=generator, dtype=torch.float64)
    key = torch.randn(20, kv_heads, 8, generator=generator, dtype=torch.float64)
    value = torch.stack([torch.arange(20.0).double() + 100 * head for head in range(kv_heads)], 1).unsqueeze(-1)
    retain = Retain(6, 11, count, pool, per_head)
    keys, values = thinned(query, key, value.expand(-1, -1, 8), retain)
    assert keys.shape == (count, kv_heads, 8)
    kept = [[int(v) - 100 * head for v in values[:, head, 0]] for head in range(kv_heads)]
    for head, scores in enumerate(naive(query, key, retain)):
        assert len(set(kept[head])) == count
        assert torch.equal(keys[:, head], key[kept[head], head])
        best = sorted(scores.values(), reverse=True)[:count]
        assert [scores[row] for row in kept[head]] == pytest.approx(best, abs=1e-12)
    differing = len({frozenset(rows) for rows in kept})
    assert differing == 1 if not per_head or count == 15 else differing > 1


@pytest.mark.parametrize("backend", [SdpaAttention, NaiveAttention])
def test_a_window_that_thins_attends_to_itself_and_fills_its_range_from_the_start(backend: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(12, 2, 8, generator=generator) for _ in range(3))
    retain = Retain(4, 8, 3, 1, True)
    arena = [torch.full((1, 30, 2, 8), torch.nan) for _ in range(2)]
    output = backend([Segment(0, 12, 10, retain=retain)], *arena)(0, query, key, value)
    plain = backend([Segment(0, 12)])(0, query, key, value)
    assert torch.equal(output, plain)
    keys, values = thinned(query, key, value, retain)
    assert torch.equal(arena[0][0, 10:13], keys)
    assert torch.equal(arena[1][0, 10:13], values)
    for part in arena:
        assert torch.isnan(part[0, :10]).all()
        assert torch.isnan(part[0, 13:]).all()


def ask(name: str, **changes: Any) -> Request:
    engine = changes.pop("engine", Sparse(0.5))
    return Request(name, PROMPT, dataclasses.replace(PARAMS, **changes), engine, Threshold(0.5))


def test_a_smaller_share_lets_more_canvases_run_at_once() -> None:
    widest = {}
    for ratio in (1.0, 0.0):
        decoder = WORLD.decoder(arena_tokens=120, max_num_seqs=8)
        reports: list[int] = []
        requests = [ask(str(index), engine=Sparse(ratio)) for index in range(8)]
        done = list(decoder.run(requests, on_step=lambda report, seen=reports: seen.append(report.num_canvases)))
        assert [one.error for one in done] == [None] * 8
        assert decoder.arena.ranges.num_taken == 0
        widest[ratio] = max(reports)
    assert widest == {1.0: 2, 0.0: 8}


def test_a_request_that_can_never_fit_is_refused_with_both_sizes() -> None:
    decoder = WORLD.decoder(arena_tokens=55)
    requests = [ask("large", engine=DualCache()), ask("guided", cfg_scale=1.0), ask("fits"), ask("wide", engine=Full())]
    done = {one.request_id: one.error for one in decoder.run(requests)}
    assert done["fits"] is None
    assert done["wide"] is None
    assert done["large"] == "the request needs 56 arena slots, the arena has 55; raise arena_tokens"
    assert done["guided"] == "the request needs 64 arena slots, the arena has 55; raise arena_tokens"
    assert decoder.arena.ranges.num_taken == 0


def test_ranges_come_back_after_a_failing_forward() -> None:
    """A backend that raises ends the run; what was held is free and the decoder still works."""
    decoder = WORLD.decoder(arena_tokens=400)
    backend, calls = decoder.backend, 0

    def failing(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError("no room for this forward")
        return backend(*given)

    decoder.backend = failing
    with pytest.raises(MemoryError):
        list(decoder.run(ask(str(index), cfg_scale=1.0 * (index == 1)) for index in range(4)))
    assert decoder.arena.ranges.num_taken == 0
    assert not decoder.has_work
    assert len(list(decoder.run([ask("again")]))) == 1
