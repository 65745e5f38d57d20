"""Algorithms of the quality table, and their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlm.decoding.algorithms import ALGORITHMS
from dlm.demo.validation import GEN_LENGTH
from dlm.models.families import LLADA


@dataclass(frozen=True)
class Variant:
    """One row of the quality table.

    Attributes:
        algorithm: a name in `ALGORITHMS`.
        options: non-default parameters of its engine and sampler.
        steps: total of the schedule, if it has one.
    """

    algorithm: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = GEN_LENGTH

    def __str__(self) -> str:
        scheduled = ALGORITHMS[self.algorithm].flexible and not {"threshold", "factor"} & self.options.keys()
        each = GEN_LENGTH // self.steps
        words = [f"{each} token{'s' * (each > 1)} a step"] if scheduled else []
        words += [f"{name} {value}" for name, value in self.options.items()]
        return ", ".join([self.algorithm, *words])


BASELINE = Variant("dual_cache", {"threshold": 0.9})
"""The others are compared with this one."""

SHARES = (0.25, 0.5, 0.75, 1.0)

VARIANTS: dict[str, Sequence[Variant]] = {
    "basic": (
        Variant("basic"),
        Variant("basic", steps=GEN_LENGTH // 2),
        Variant("basic", steps=GEN_LENGTH // 4),
        Variant("basic", {"threshold": 0.9}),
    ),
    "prefix_cache": (Variant("prefix_cache"), Variant("prefix_cache", {"threshold": 0.9})),
    "dual_cache": (Variant("dual_cache"), BASELINE, Variant("dual_cache", {"factor": 1.0})),
    "sparse": tuple(Variant("sparse", {"threshold": 0.9, "retention_ratio": share}) for share in SHARES),
    "entropy_bound": tuple(Variant("entropy_bound", {"gamma": gamma}) for gamma in (0.01, 0.1, 0.5, 1.0)),
}
"""Rows of algorithms shown with more than their defaults."""


def variants(algorithms: Sequence[str] | None) -> list[Variant]:
    """The rows for these algorithms (None: all), the baseline first."""
    found = [BASELINE]
    for name in runnable() if algorithms is None else algorithms:
        found += [one for one in VARIANTS.get(name, (Variant(name),)) if one != BASELINE]
    return found


def runnable() -> list[str]:
    """Algorithms that the demo's family, LLaDA, can run."""
    return [name for name in ALGORITHMS if name in LLADA.algorithms]
