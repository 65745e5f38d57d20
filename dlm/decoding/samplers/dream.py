"""Dream's samplers (arXiv 2508.15487) and Fast-dLLM's for Dream. With engine `full` the canvas is one block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dlm.decoding.params import MIN_TEMPERATURE, SamplingParams, check_real
from dlm.decoding.samplers.base import Sampler, check_length
from dlm.decoding.types import Floats, Indices, Scores, StepContext
from dlm.errors import RequestError

ALGS = {"origin": "random", "maskgit_plus": "low_confidence", "topk_margin": "margin", "entropy": "entropy"}


@lru_cache(maxsize=64)
def transfer_shares(steps: int, eps: float) -> npt.NDArray[np.float32]:
    """1 - t_{i+1} / t_i for times t from 1 to eps in `steps` equal parts; `[steps]` float32, the last one 1."""
    import torch  # local, so that a config can be validated without torch

    time = torch.linspace(1.0, eps, steps + 1)
    shares: npt.NDArray[np.float32] = (1 - time[1:] / time[:-1]).numpy()
    shares[-1] = 1.0
    return shares


@dataclass(frozen=True)
class Dream(Sampler):
    """Dream's time steps: step i reveals int(n (1 - t_{i+1} / t_i)) of n masks, the last step all.

    A step that reveals nothing runs no forward.

    Attributes:
        alg: which masks come first: `maskgit_plus` (highest probability), `topk_margin` or `entropy`; or `origin`,
            which reveals each mask by an independent draw.
        alg_temp: if above 0, positions are drawn with probabilities softmax(priority / alg_temp).
        eps: the last time.
    """

    alg: str = "maskgit_plus"
    alg_temp: float = 0.0
    eps: float = 1e-3
    name: ClassVar[str] = "dream"
    whole_canvas: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.alg not in ALGS:
            raise RequestError(f"alg={self.alg!r} must be one of {', '.join(ALGS)}")
        check_real("alg_temp", self.alg_temp, 0.0, None, least=MIN_TEMPERATURE)
        check_real("eps", self.eps, 0.0, 1.0, open_low=True)
        if self.alg == "origin" and self.alg_temp:
            raise RequestError(f"alg_temp={self.alg_temp} has no meaning with alg=origin; leave it out")

    @property
    def ranks_by(self) -> str:
        return ALGS[self.alg]

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        check_length(self.name, params)
        if params.steps < num_blocks:
            raise RequestError(f"steps={params.steps} must be at least {num_blocks}, one for each block")

    def _count(self, step: int, context: StepContext) -> int:
        if step >= context.steps - 1:
            return context.left
        return int(np.float32(context.left) * transfer_shares(context.steps, self.eps)[step])

    def skipped_steps(self, context: StepContext, uniform: Callable[[int], Floats]) -> int:
        step = context.step
        while step < context.steps - 1 and not self._reveals(step, context, uniform):
            step += 1
        return step - context.step

    def _reveals(self, step: int, context: StepContext, uniform: Callable[[int], Floats]) -> bool:
        if self.alg == "origin":
            return bool((uniform(step) < transfer_shares(context.steps, self.eps)[step]).any())
        return self._count(step, context) > 0

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        if self.alg == "origin":
            step = min(context.step, context.steps - 1)
            return np.flatnonzero(scores.uniform < transfer_shares(context.steps, self.eps)[step]), None
        count = self._count(context.step, context)
        if not self.alg_temp:
            return scores.descending()[:count], None
        drawn = scores.priority / self.alg_temp - np.log(-np.log(scores.uniform))
        return np.argsort(-drawn, kind="stable")[:count], None


@dataclass(frozen=True)
class FastDLLMDream(Sampler):
    """Each step considers the best `masks // steps` candidates plus as many as it rejected before: it reveals the
    first, and the others with confidence >= threshold. Rejections at the last step add a step without new candidates
    (Fast-dLLM)."""

    threshold: float = 0.9
    name: ClassVar[str] = "fastdllm_dream"
    whole_canvas: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def check(self, params: SamplingParams, num_blocks: int) -> None:
        check_length(self.name, params)
        if params.gen_length % params.steps:
            raise RequestError(f"steps={params.steps} must divide gen_length={params.gen_length} for fastdllm_dream")

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        carry: int = memory or 0
        base = context.masks // context.steps if context.step < context.steps else 0
        looked = scores.descending()[: base + carry]
        kept = scores.confidence[looked] >= self.threshold
        kept[:1] = True
        return looked[kept], len(looked) - int(kept.sum())
