"""Samplers that reveal by a schedule, so that every row of a table takes the forwards it is meant to take.

With random weights a sampler that follows the model's confidence would reveal by chance. Here it is asked, its cost is
paid, and the scheduled number of most confident positions is revealed instead.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dlm.decoding.engines import ENGINES
from dlm.decoding.params import SamplingParams
from dlm.decoding.samplers import SAMPLERS, Fixed, Sampler, Sdar
from dlm.decoding.types import Indices, LogitBias, Scores, StepContext

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
class Paced(Sampler):
    """`inner` does its work, `pace` says what is revealed."""

    inner: Sampler
    pace: Sampler

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def ranks_by(self) -> str:
        return self.inner.ranks_by

    @property
    def edits(self) -> bool:
        return self.inner.edits

    @property
    def track(self) -> bool:
        return self.inner.track

    @property
    def biases(self) -> bool:
        return self.inner.biases

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        self.pace.check(params, num_blocks)

    def logit_bias(self, scores: Scores, memory: Any) -> tuple[LogitBias, Any]:
        return self.inner.logit_bias(scores, memory)

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        _, memory = self.inner.select(scores, context, memory)
        masked = np.flatnonzero(scores.masked)
        chosen, _ = self.pace.select(part_of(scores, masked), context, None)
        return masked[chosen], memory


def part_of(scores: Scores, rows: Indices) -> Scores:
    """Some of the candidates."""
    return Scores(**{field.name: getattr(scores, field.name)[rows] for field in fields(Scores)})
