"""Samplers that reveal by a schedule, so that every table row takes the intended number of forwards.

On random weights, a sampler that follows the model's confidence would reveal by chance. Here it runs, so that its cost
counts, but the scheduled number of most confident positions is revealed instead.
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
"""A workload's name for the bare schedule, without another sampler on top."""


PACED_ENGINES = tuple(
    name
    for name, kind in ENGINES.items()
    for engine in (kind(),)
    if not engine.one_block and engine.fixed_block is None
)
PACED_SAMPLERS = tuple(name for name in SAMPLERS if name != "linear_spec")
"""Engines and samplers that can follow a fixed number of forwards per block; those that decode token by token or draft
cannot."""


def schedule(engine: str, steps_per_block: int) -> Sampler:
    """The schedule of an engine: LLaDA's, or SDAR's if the first block may hold the end of the prompt, with quotas
    computed from the block length."""
    if ENGINES[engine]().blocks_from_zero:
        return Sdar("low_confidence_static", steps_per_block=steps_per_block)
    return Fixed()


def sampler_for(name: str, engine: str, steps_per_block: int) -> Sampler:
    """The sampler of a row; `name` is `fixed` or a key of `SAMPLERS`, with its defaults."""
    pace = schedule(engine, steps_per_block)
    return pace if name == SCHEDULE else Paced(SAMPLERS[name](), pace)


@dataclass(frozen=True)
class Paced(Sampler):
    """Runs `inner`, but reveals what `pace` selects."""

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
    """The scores of some of the candidates."""
    return Scores(**{field.name: getattr(scores, field.name)[rows] for field in fields(Scores)})
