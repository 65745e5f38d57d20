"""What each engine recomputes, window by window, for small canvases; and how the arena's ranges are shared out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dlm.decoding.canvas import Canvas
from dlm.decoding.engines import (
    Autoregressive,
    BlockCausal,
    CausalCommit,
    DualCache,
    Engine,
    Full,
    PrefixCache,
    Smooth,
    Sparse,
    Vicinity,
)
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Dream, Sampler, Threshold
from dlm.decoding.types import NONE, Window
from dlm.errors import RequestError
from dlm.models.attention.segments import Retain

MASK = 99
PARAMS = SamplingParams(gen_length=8, block_length=4, steps=8, temperature=0.0)


def canvas(
    engine: Engine, prompt: int = 6, *, shifted: bool = False, sampler: Sampler | None = None, **params: Any
) -> Canvas:
    asked = Request("a", tuple(range(prompt)), replace(PARAMS, **params), engine, sampler or Threshold())
    return Canvas(asked, 0, 0, MASK, shifted=shifted)


def reveal(subject: Canvas, count: int) -> None:
    """One forward that decides the first `count` masks of the block."""
    where = subject.masked()[:count]
    subject.count_forward()
    subject.write(where, np.zeros(count, dtype=np.int64), NONE, None)
    subject.finish_forward()
    if len(subject.masked()):
        subject.prepare()
    else:
        subject.next_block()


def windows(subject: Canvas, *revealed: int) -> list[tuple[Window, ...]]:
    """The plans before each of the forwards that reveal so many, and the one after them."""
    plans = [subject.plan.windows]
    for count in revealed:
        reveal(subject, count)
        plans.append(subject.plan.windows)
    return plans


WHOLE, KEPT = (Window(0, 14),), (Window(0, 14, 0),)


def test_full_recomputes_everything() -> None:
    assert windows(canvas(Full()), 2, 2, 4) == [WHOLE] * 4
    assert Full().slots(canvas(Full())) == 0


def test_prefix_cache_recomputes_from_the_block_on() -> None:
    later = (Window(6, 14, 6, 14),)
    assert windows(canvas(PrefixCache()), 1, 1, 2, 1) == [KEPT, later, later, KEPT, (Window(10, 14, 10, 14),)]


def test_dual_cache_recomputes_the_block() -> None:
    assert windows(canvas(DualCache()), 1, 3, 1) == [KEPT, (Window(6, 10, 6, 14),), KEPT, (Window(10, 14, 10, 14),)]


def test_vicinity_recomputes_around_the_block_after_its_warm_up() -> None:
    engine = Vicinity(prefix_look=2, after_look=3, warmup_steps=1, maximum_unroll=1)
    around = (Window(4, 13, 4, 14),)
    assert windows(canvas(engine), 1, 1, 1) == [WHOLE, KEPT, around, around]
    clipped = Vicinity(prefix_look=9, after_look=9, warmup_steps=0)
    assert windows(canvas(clipped), 1) == [KEPT, (Window(0, 14, 0, 14),)]


def test_vicinity_counts_the_forward_that_the_program_makes_after_a_refresh() -> None:
    """The refresh finishes the block: the program makes one more forward, and the next block finds the cache."""
    subject = canvas(Vicinity(2, 2, warmup_steps=0, maximum_unroll=1))
    assert subject.plan.windows == KEPT
    reveal(subject, 4)
    assert (subject.nfe, subject.reference.forwards) == (1, 2)
    assert subject.plan.windows == KEPT  # a new block's first forward fills the cache again
    reveal(subject, 1)
    assert subject.plan.windows == (Window(8, 14, 8, 14),)
    assert (subject.nfe, subject.reference.forwards) == (2, 3)


def test_vicinity_looks_at_the_block_only_after_its_unrolled_iterations() -> None:
    """Four iterations of a block of 4 masks with `expected_tpf` 1: finished after one forward, three more are counted,
    and the warm-up of five is nearly over when the next block begins."""
    subject = canvas(Vicinity(0, 0, warmup_steps=5, maximum_unroll=4, expected_tpf=1))
    reveal(subject, 4)
    assert (subject.nfe, subject.reference.forwards) == (1, 4)
    assert subject.plan.windows == WHOLE
    reveal(subject, 1)
    assert subject.plan.windows == KEPT


def test_smooth_has_its_bases_windows_and_weights_by_forward() -> None:
    engine = Smooth(DualCache(), cont_weight_init=0.1, cont_weight_growth=0.1, cont_weight=0.25, threshold_decay=0.3)
    assert windows(canvas(engine), 1, 3, 1) == windows(canvas(DualCache()), 1, 3, 1)
    rule = engine.smoothing
    assert [rule.weight(t) for t in range(4)] == pytest.approx([0.1, 0.2, 0.25, 0.25])
    assert [rule.floor(t) for t in range(4)] == pytest.approx([1.0, 0.7, 0.4, 0.1])
    assert engine.slots(canvas(engine)) == 14
    assert Smooth(Full()).slots(canvas(Smooth(Full()))) == 0
    assert Smooth(Vicinity(maximum_unroll=2)).unroll.maximum == 4  # its own pace, not the base's
    with pytest.raises(RequestError, match="base=sparse: smooth supports full, prefix_cache, dual_cache"):
        Smooth(Sparse())


def test_sparse_looks_selects_and_reads_what_it_kept() -> None:
    engine = Sparse(retention_ratio=0.5, delay_step=1, kernel_size=3, head_select=False)
    select = Window(0, 14, retain=Retain(6, 10, 5, 3, False))
    assert windows(canvas(engine), 1, 1, 1) == [WHOLE, (select,), (Window(6, 10, 5, 9),), (Window(6, 10, 5, 9),)]
    at_once = canvas(Sparse(0.5, delay_step=0))
    assert windows(at_once, 1) == [(Window(0, 14, retain=Retain(6, 10, 5, 3, True)),), (Window(6, 10, 5, 9),)]


@pytest.mark.parametrize(("ratio", "slots"), [(0.0, 4), (0.25, 6), (0.5, 9), (0.9, 13), (1.0, 14)])
def test_sparse_holds_the_retained_share_and_the_block(ratio: float, slots: int) -> None:
    """10 positions lie outside a block of 4."""
    subject = canvas(Sparse(ratio))
    assert subject.request.engine.slots(subject) == slots


def test_sparse_makes_room_for_its_largest_need() -> None:
    """A short last block leaves more outside: 12 of 15 positions at a half are 6, with its 3 that is 9; 11 // 2 + 4 is
    9 too. With a ratio of 1 everything is held."""
    subject = canvas(Sparse(0.5), prompt=8, gen_length=7)
    assert subject.request.engine.slots(subject) == 9
    subject = canvas(Sparse(1.0), prompt=8, gen_length=7)
    assert subject.request.engine.slots(subject) == 15


def test_sparse_with_nothing_to_keep_selects_nothing() -> None:
    """Also where the block is the whole canvas, so that nothing lies outside it."""
    assert windows(canvas(Sparse(0.0, delay_step=0)), 1) == [WHOLE, (Window(6, 10, 0, 4),)]
    alone = canvas(Sparse(0.5, delay_step=0), prompt=1, gen_length=3, block_length=4, align_blocks=True)
    assert windows(alone, 1) == [(Window(0, 4),), (Window(0, 4, 0, 4),)]


def test_block_causal_prefills_and_commits_beside_the_block() -> None:
    """Blocks count from 0: the prompt of 6 ends inside the second, the canvas is rounded up to 16."""
    subject = canvas(BlockCausal())
    assert (subject.length, subject.block_start, subject.block_stop) == (16, 4, 8)
    prefill, first = Window(0, 4, 0, 4), Window(4, 8, 4, 8)
    second = Window(8, 12, 8, 12)
    assert windows(subject, 1, 1, 1) == [(prefill, first), (first,), (first, second), (second,)]
    assert subject.plan.phase == "reuse"
    assert subject.request.engine.slots(subject) == 16


def test_causal_commit_keeps_the_prompt_causally_and_seeds_the_block() -> None:
    subject = canvas(CausalCommit())
    block = Window(6, 10, 6, 10)
    assert subject.plan.windows == (Window(0, 5, 0, 5, causal=True), Window(5, 6, 5, 6, causal=True))
    assert (subject.plan.first_only, subject.plan.shifted) == (True, True)
    assert subject.candidates().tolist() == [6]
    reveal(subject, 1)
    assert subject.plan.windows == (block,)
    assert not subject.plan.first_only
    reveal(subject, 3)
    assert subject.plan.windows == (Window(6, 10, 6, 10, causal=True),)
    assert subject.candidates().tolist() == [10]


def test_causal_commit_seeds_no_block_that_begins_with_a_given_token() -> None:
    prompt = (1, 2, MASK, 4, 5, 6, 7, MASK)
    asked = Request("a", prompt, replace(PARAMS, block_length=3), CausalCommit(), Threshold())
    subject = Canvas(asked, 0, 0, MASK)
    assert subject.plan.windows == (Window(0, 1, 0, 1, causal=True), Window(1, 2, 1, 2, causal=True))
    reveal(subject, 1)
    assert (subject.block_start, subject.plan.windows) == (5, (Window(2, 5, 2, 5, causal=True), Window(5, 8, 5, 8)))
    assert not subject.plan.first_only


@pytest.mark.parametrize("engine", [PrefixCache(), DualCache()])
def test_a_shifted_refresh_seeds_the_block(engine: Engine) -> None:
    """The block's own forward cannot see what predicts its first position."""
    subject = canvas(engine, shifted=True)
    assert (subject.plan.windows, subject.plan.first_only, subject.plan.shifted) == (KEPT, True, True)
    reveal(subject, 1)
    assert (subject.plan.first_only, subject.plan.shifted) == (False, True)
    assert subject.reserved(0) == 4
    assert canvas(Full(), shifted=True).reserved(0) == 2


def test_the_whole_canvas_is_one_block_for_dream_with_full() -> None:
    assert len(canvas(Full(), sampler=Dream()).blocks) == 1
    assert len(canvas(DualCache(), sampler=Dream()).blocks) == 2


def test_a_step_that_reveals_nothing_is_passed_over() -> None:
    """Step i of 40 has the share 0.024975 / (1 - 0.024975 i), which is an eighth first at i = 33."""
    subject = canvas(Full(), sampler=Dream(), steps=40)
    assert (subject.block_steps, subject.nfe) == (33, 0)


def test_a_prompt_that_begins_with_a_mask_shares_nothing() -> None:
    for engine in (CausalCommit(), Autoregressive(), BlockCausal()):
        asked = Request("a", (MASK, 2, 3), PARAMS, engine, Threshold())
        assert engine.shared(Canvas(asked, 0, 0, MASK)) == 0
        assert engine.shared(canvas(engine, prompt=6)) == {"block_causal": 4}.get(engine.name, 5)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (Vicinity, {"prefix_look": -1}, "prefix_look=-1"),
        (Vicinity, {"warmup_steps": 1.5}, "warmup_steps=1.5"),
        (Vicinity, {"maximum_unroll": 0}, "maximum_unroll=0"),
        (Smooth, {"cont_weight": 1.5}, "cont_weight=1.5"),
        (Smooth, {"expected_tpf": 0}, "expected_tpf=0"),
        (Sparse, {"retention_ratio": 1.5}, "retention_ratio=1.5"),
        (Sparse, {"delay_step": -1}, "delay_step=-1"),
        (Sparse, {"kernel_size": 4}, "kernel_size=4 must be odd"),
    ],
)
def test_a_wrong_parameter_is_named(kind: type[Any], values: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as raised:
        kind(**values)
    assert said in str(raised.value)
