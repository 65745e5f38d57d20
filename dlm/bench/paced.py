"""Samplers that reveal by a schedule, so that every row of a table takes the forwards it is meant to take.

With random weights a sampler that follows the model's confidence would reveal by chance. Here it is asked, its cost is
paid, and the scheduled number of most confident positions is revealed instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dlm.decoding.engines import ENGINES
from dlm.decoding.request import SamplingParams
from dlm.decoding.samplers import SAMPLERS, Boost, Fixed, Sampler, Scores, Sdar, Turn
from dlm.decoding.samplers.base import NONE, Floats, Indices

SCHEDULE = "fixed"
"""What a workload calls the schedule itself, without another sampler on top."""


PACED_ENGINES = tuple(
    name
    for name, kind in ENGINES.items()
    for engine in (kind(),)
    if not engine.one_block and engine.fixed_block is None
)
PACED_SAMPLERS = tuple(name for name in SAMPLERS if name != "linear_spec")
"""What can be held to a schedule of so many forwards a block: what decodes token by token or drafts cannot."""


def schedule(engine: str, steps_per_block: int) -> Sampler:
    """The schedule of an engine: LLaDA's, or, where the first block may hold the end of the prompt, SDAR's, whose
    quotas count from the block length."""
    if ENGINES[engine]().blocks_from_zero:
        return Sdar("low_confidence_static", steps_per_block=steps_per_block)
    return Fixed()


def sampler_for(name: str, engine: str, steps_per_block: int) -> Sampler:
    """The sampler of a row; `name` is `fixed` or a key of `SAMPLERS`, taken with its defaults."""
    pace = schedule(engine, steps_per_block)
    return pace if name == SCHEDULE else Paced(SAMPLERS[name](), pace)


@dataclass(frozen=True)
class Paced:
    """`inner` does its work, `pace` says what is revealed."""

    inner: Sampler
    pace: Sampler

    whole_canvas = False
    self_paced = False

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def order(self) -> str:
        return self.inner.order

    @property
    def edits(self) -> bool:
        return self.inner.edits

    @property
    def track(self) -> bool:
        return self.inner.track

    @property
    def boosts(self) -> bool:
        return self.inner.boosts

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        self.pace.check(params, num_blocks)

    def idle(self, turn: Turn, uniform: Callable[[int], Floats]) -> int:
        return 0

    def boost(self, scores: Scores, memory: Any) -> tuple[Boost, Any]:
        return self.inner.boost(scores, memory)

    def select(self, scores: Scores, turn: Turn, memory: Any) -> tuple[Indices, Any]:
        _, memory = self.inner.select(scores, turn, memory)
        masked = np.flatnonzero(scores.masked)
        chosen, _ = self.pace.select(part_of(scores, masked), turn, None)
        return masked[chosen], memory

    def remask(self, scores: Scores, chosen: Indices) -> Indices:
        return NONE

    def settled(self, memory: Any) -> bool:
        return True

    def done(self, left: int, memory: Any) -> bool:
        return left == 0


def part_of(scores: Scores, rows: Indices) -> Scores:
    """Some of the candidates."""
    return Scores(**{field.name: getattr(scores, field.name)[rows] for field in fields(Scores)})
