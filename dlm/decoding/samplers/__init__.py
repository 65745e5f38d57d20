"""Which masked positions of the active block become tokens; one family of samplers a file."""

from dlm.decoding.samplers.base import Sampler, Scores, Turn
from dlm.decoding.samplers.confident import DInferThreshold, Factor, Threshold
from dlm.decoding.samplers.scheduled import Fixed

SAMPLERS: dict[str, type[Sampler]] = {sampler.name: sampler for sampler in (Fixed, Threshold, Factor, DInferThreshold)}

__all__ = ["SAMPLERS", "DInferThreshold", "Factor", "Fixed", "Sampler", "Scores", "Threshold", "Turn"]
