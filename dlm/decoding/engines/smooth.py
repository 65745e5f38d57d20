"""Soft inputs: masked positions carry a share of the last forward's expected embedding (dInfer, arXiv 2510.08666)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dlm.decoding.engines.base import Engine
from dlm.decoding.engines.cached import Vicinity
from dlm.decoding.params import check_real, check_whole
from dlm.decoding.types import CanvasState, Plan, Smoothing, Unroll
from dlm.errors import RequestError


@dataclass(frozen=True)
class Smooth(Engine):
    """`base`, with masked positions fed E[mask] + w (softmax(logits) E).

    Forwards that dInfer runs on a finished block advance w but are not run.

    Attributes:
        base: the engine that plans the windows.
        cont_weight_init, cont_weight_growth, cont_weight: w = min(init + growth t, cont_weight) at forward t.
        threshold_decay: samplers with a threshold use max(1 - threshold_decay t, threshold).
        maximum_unroll, expected_tpf: see `Unroll`.
    """

    base: Engine = field(default_factory=Vicinity)
    cont_weight_init: float = 0.15
    cont_weight_growth: float = 0.02
    cont_weight: float = 0.3
    threshold_decay: float = 0.02
    maximum_unroll: int = 4
    expected_tpf: int = 8
    name: ClassVar[str] = "smooth"

    def __post_init__(self) -> None:
        for name in ("cont_weight_init", "cont_weight_growth", "cont_weight", "threshold_decay"):
            check_real(name, getattr(self, name), 0.0, 1.0)
        for name in ("maximum_unroll", "expected_tpf"):
            check_whole(name, getattr(self, name), 1)
        if self.base.name not in ("full", "prefix_cache", "dual_cache", "vicinity"):
            raise RequestError(f"base={self.base.name}: smooth supports full, prefix_cache, dual_cache and vicinity")

    @property
    def smoothing(self) -> Smoothing:
        return Smoothing(self.cont_weight_init, self.cont_weight_growth, self.cont_weight, self.threshold_decay)

    @property
    def unroll(self) -> Unroll:
        return Unroll(self.maximum_unroll, self.expected_tpf)

    def slots(self, canvas: CanvasState) -> int:
        return self.base.slots(canvas)

    def plan(self, canvas: CanvasState) -> Plan:
        return self.base.plan(canvas)
