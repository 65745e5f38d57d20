"""Samplers that add to the logits: one pass of the head, however its rows are cut."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from dlm.decoding.engines import DualCache, Engine, Full, Smooth
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Credit
from dlm.models.architecture import ROW_TILE
from tests.decoding.drawing import draw_prompt, facts
from tests.decoding.worlds import BY_NAME

GOLDEN = BY_NAME["golden"]
PARAMS = SamplingParams(24, block_length=12, temperature=0.0, seed=3, ignore_eos=True, record=True)


def test_credit_passes_each_mask_through_the_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = GOLDEN.decoder()
    rows: list[int] = []
    head = type(decoder.backbone).head

    def counted(self: Any, hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return head(self, hidden)

    monkeypatch.setattr(type(decoder.backbone), "head", counted)
    left = []
    decoder.add(Request("a", (5, 6, 7), PARAMS, Full(), Credit(1.0)))
    while decoder.has_work:
        canvas = (*decoder.scheduler.running, *decoder._waiting)[0]
        left.append(len(canvas.masked()))
        decoder.step()
    assert rows == [-(-masks // ROW_TILE) * ROW_TILE for masks in left]
    assert sum(left) >= 2 * sum(range(1, 13)) - 24


@pytest.mark.parametrize("engine", [Full(), DualCache(), Smooth(DualCache())])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_credit_does_not_depend_on_how_rows_are_cut(engine: Engine, temperature: float) -> None:
    chance, special = random.Random(6), GOLDEN.checkpoint().special
    requests = [
        Request(
            str(index),
            draw_prompt(chance, special, 500),
            replace(PARAMS, temperature=temperature, top_k=chance.choice([0, 20])),
            engine,
            Credit(0.5, chance.choice([0.7, 4.0])),
        )
        for index in range(8)
    ]
    runs = []
    for max_rows in (4, 8, 20, 10_000):
        decoder = GOLDEN.decoder(max_num_seqs=8)
        decoder.selector.max_rows = max_rows
        runs.append(sorted(map(facts, decoder.run(requests)), key=str))
    assert runs[0] == runs[1] == runs[2] == runs[3]
