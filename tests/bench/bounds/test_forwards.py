"""The forwards that the table is computed from, against schedules worked out by hand and against the decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dlm.bench.bounds.forwards import reference_forwards
from dlm.bench.machine.memory import PeakMemory
from dlm.bench.machine.stopwatch import Stopwatch
from dlm.bench.paced import PACED_ENGINES, PACED_SAMPLERS, Paced, schedule
from dlm.bench.sides import Planned, check_ours, decode, decoder_options, plan, requests, silence_mask
from dlm.bench.workloads import Case, prompts
from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import ENGINES
from dlm.decoding.samplers import Threshold
from dlm.decoding.types import Indices, Scores, StepContext
from dlm.errors import RunError
from dlm.models.io.loading import random_checkpoint
from dlm.models.sizes import SIZES

SIZE_OF = {"bidirectional": "tiny", "block_causal": "tiny_sdar", "causal_context": "tiny_nemotron"}
NOW = Stopwatch(torch.device("cpu"))


def case(engine: str, sampler: str = "fixed", lengths: tuple[int, ...] = (5, 9), steps: int = 3) -> Case:
    return Case(
        size=SIZE_OF[ENGINES[engine]().attention],
        engine=engine,
        sampler=sampler,
        batch=len(lengths),
        dtype="float32",
        prompt_length=5,
        prompts=prompts(lengths, 100, 0),
        gen_length=8,
        block_length=4,
        blocks=2,
        steps_per_block=steps,
    )


def planned(one: Case) -> Planned:
    return plan(one, SIZES[one.size], SIZES[one.size].vocab_size - 1, reference=True)


def rows(engine: str) -> list[int]:
    return [forward.rows for forward in planned(case(engine)).lanes[0]]


def test_the_schedules_of_the_engines() -> None:
    assert rows("full") == [13] * 6
    assert rows("dual_cache") == [13, 4, 4, 13, 4, 4]
    assert rows("prefix_cache") == [13, 8, 8, 13, 4, 4]
    assert rows("sparse") == [13, 13, 4, 13, 13, 4]
    # Four warm-up forwards, then a refresh and windows that reach to both ends of so short a canvas.
    assert rows("vicinity") == [13] * 6


def test_block_causal_prefills_and_commits_on_the_way() -> None:
    first, second = planned(case("block_causal")).lanes
    # Blocks of 4 from 0: the prompt of 5 leaves 3 masks of its second block, then a whole one; quotas are 2, 1, 1.
    assert [forward.windows for forward in first] == [
        ((4, 4), (4, 8)), ((4, 8),), ((4, 8), (4, 12)), ((4, 12),), ((4, 12),)
    ]  # fmt: skip
    assert [forward.revealed for forward in first] == [2, 1, 2, 1, 1]
    assert [forward.rows for forward in second] == [12, 4, 8, 4, 4]


def test_the_reference_of_block_causal_prefills_and_stores_in_calls_of_their_own() -> None:
    one = planned(case("block_causal", lengths=(5,)))
    assert [forward.rows for forward in one.theirs] == [4, 4, 4, 4, 4, 4, 4]
    assert [forward.score_rows for forward in one.theirs] == [0, 4, 4, 0, 4, 4, 4]
    assert one.tokens == 7


@pytest.mark.parametrize("engine", ["full", "prefix_cache", "dual_cache", "vicinity"])
def test_bidirectional_programs_recompute_what_ours_does(engine: str) -> None:
    one = planned(case(engine))
    assert one.outcomes is not None
    for lane, outcome in zip(one.lanes, one.outcomes, strict=True):
        assert [(forward.rows, forward.windows[0][1]) for forward in lane] == [(c.fed, c.keys) for c in outcome.calls]
    assert all(forward.head_rows == forward.rows for forward in reference_forwards(one.outcomes))


def test_canvases_step_together_until_each_is_done() -> None:
    both = planned(case("block_causal", lengths=(5, 8)))
    assert [len(lane) for lane in both.lanes] == [5, 6]
    assert [len(forward.windows) for forward in both.ours] == [2 + 3, 2, 3, 3, 2, 1]


def test_engines_and_models_without_a_program_have_no_reference() -> None:
    assert planned(case("sparse")).outcomes is None
    assert planned(case("full", "threshold")).outcomes is None
    one = case("full")
    assert plan(one, SIZES["tiny_moe"], 1023, reference=True).outcomes is None
    assert plan(one, SIZES["tiny"], 1023, reference=False).outcomes is None


@pytest.mark.parametrize("sampler", PACED_SAMPLERS)
@pytest.mark.parametrize("engine", PACED_ENGINES)
def test_every_pair_decodes_by_the_schedule(engine: str, sampler: str) -> None:
    if ENGINES[engine]().smoothing is not None and sampler == "klass":
        pytest.skip("klass is not defined with smoothed inputs")
    one = case(engine, sampler)
    checkpoint = random_checkpoint(one.size)
    silence_mask(checkpoint)
    expected = plan(one, checkpoint.backbone.config, checkpoint.special.mask_id, reference=False)
    decoder = Decoder(checkpoint.backbone, checkpoint.special, decoder_options(one))
    _, completions, reports = decode(decoder, one, NOW)
    check_ours(expected, completions, reports)
    assert expected.tokens == sum(np.sum(np.array(c.canvas_ids) != checkpoint.special.mask_id) for c in completions)


def test_a_run_off_the_schedule_is_noticed() -> None:
    one, other = case("full"), case("full", steps=4)
    checkpoint = random_checkpoint(one.size)
    silence_mask(checkpoint)
    decoder = Decoder(checkpoint.backbone, checkpoint.special, decoder_options(one))
    _, completions, reports = decode(decoder, one, NOW)
    with pytest.raises(RunError, match="the schedule says"):
        check_ours(planned(other), completions, reports)


def test_a_paced_sampler_asks_its_inner_one() -> None:
    asked = []

    class Watched(Threshold):
        def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
            asked.append(len(scores.tokens))
            return super().select(scores, context, memory)

    one = case("full", lengths=(5,))
    checkpoint = random_checkpoint(one.size)
    silence_mask(checkpoint)
    decoder = Decoder(checkpoint.backbone, checkpoint.special, decoder_options(one))
    (request,) = requests(one)
    list(decoder.run([replace(request, sampler=Paced(Watched(), schedule("full", 3)))]))
    assert asked == [4, 2, 1, 4, 2, 1]


def test_peak_memory_sees_what_is_held_for_a_moment() -> None:
    peak = PeakMemory(torch.device("cpu"))
    if not peak.known:
        pytest.skip("this system does not tell")
    block = torch.ones(16 << 20)  # 64 MiB
    del block
    assert peak.read() >= 60 << 20  # type: ignore[operator]  # known
