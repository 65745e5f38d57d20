"""The forwards that a case takes on each side, recorded by running the actual loops without a model.

They depend on engine and schedule but not on logits, so the ceiling and the floor can be computed from them; the
measurement checks that both programs made exactly these.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from dlm.bench.paced import schedule
from dlm.bench.reference import PROGRAMS, BlankModel, ReferenceOutcome
from dlm.bench.workloads import Case, Forward
from dlm.decoding.canvas import Canvas
from dlm.decoding.request import Request
from dlm.decoding.types import NONE, Indices, Scores


def canvas_forwards(request: Request, case: Case, mask_id: int, *, shifted: bool) -> list[Forward]:
    """Ours for one canvas: the engine plans, the schedule reveals, and the loop advances as the decoder does."""
    canvas = Canvas(request, 0, 0, mask_id, shifted=shifted)
    pace = schedule(case.engine, case.steps_per_block)
    found = []
    while True:
        masked, rows = canvas.masked(), len(canvas.scored())
        first_only = canvas.plan.first_only
        chosen = np.array([0]) if first_only else pace.select(blank_scores(masked), canvas.context(), None)[0]
        windows = tuple((w.stop - w.start, w.stop - w.start if w.keys is None else w.keys) for w in canvas.plan.windows)
        soft = rows if request.engine.smoothing is not None else 0
        found.append(Forward(windows, rows, rows, soft, len(chosen)))
        canvas.count_forward()
        canvas.write(masked[chosen], np.zeros(len(chosen), dtype=np.int64), NONE, None)
        canvas.finish_forward()
        if len(canvas.masked()):
            canvas.prepare()
        elif (request.should_stop is not None and request.should_stop(())) or not canvas.next_block():
            return found


def blank_scores(positions: Indices) -> Scores:
    """Equal scores for all masks."""
    zeros, no = np.zeros(len(positions)), np.zeros(len(positions), dtype=bool)
    whole = np.zeros(len(positions), dtype=np.int64)
    return Scores(positions, zeros, zeros, whole, no, ~no, ~no, zeros, zeros)


def packed(lanes: Sequence[Sequence[Forward]]) -> list[Forward]:
    """The forwards of canvases that start together, each stepping until it is done."""
    steps = [[one for one in step if one is not None] for step in zip_longest(*lanes)]
    return [
        Forward(
            windows=tuple(window for one in step for window in one.windows),
            head_rows=sum(one.head_rows for one in step),
            score_rows=sum(one.score_rows for one in step),
            soft_rows=sum(one.soft_rows for one in step),
            revealed=sum(one.revealed for one in step),
        )
        for step in steps
    ]


def reference_outcomes(case: Case, mask_id: int) -> list[ReferenceOutcome]:
    """The reference program's outcome for each prompt."""
    return [PROGRAMS[case.engine].run(BlankModel(), prompt, case, mask_id) for prompt in case.prompts]


def reference_forwards(outcomes: Sequence[ReferenceOutcome]) -> list[Forward]:
    """One canvas at a time; logits for every position fed."""
    return [Forward(((call.fed, call.keys),), call.fed, call.scored) for outcome in outcomes for call in outcome.calls]
