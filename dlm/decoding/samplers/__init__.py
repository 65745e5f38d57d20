"""Samplers: which masked positions of the active block become tokens. One file per family of samplers."""

from dlm.decoding.samplers.base import Sampler
from dlm.decoding.samplers.block_diffusion import LLaDA2, LLaDA21Edit, Sdar
from dlm.decoding.samplers.confident import DInferThreshold, EntropyBound, Factor, Klass, Threshold
from dlm.decoding.samplers.credit import Credit
from dlm.decoding.samplers.dream import Dream, FastDLLMDream
from dlm.decoding.samplers.hierarchy import Hierarchy, RemaskHierarchy
from dlm.decoding.samplers.scheduled import Fixed, Leftmost
from dlm.decoding.samplers.speculative import LinearSpec

SAMPLERS: dict[str, type[Sampler]] = {
    sampler.name: sampler
    for sampler in (
        *(Fixed, Leftmost, Threshold, Factor, DInferThreshold, Hierarchy, Credit, EntropyBound, Klass),
        *(LLaDA2, LLaDA21Edit, Sdar, Dream, FastDLLMDream, RemaskHierarchy, LinearSpec),
    )
}

__all__ = [
    "SAMPLERS",
    "Credit",
    "DInferThreshold",
    "Dream",
    "EntropyBound",
    "Factor",
    "FastDLLMDream",
    "Fixed",
    "Hierarchy",
    "Klass",
    "LLaDA2",
    "LLaDA21Edit",
    "Leftmost",
    "LinearSpec",
    "RemaskHierarchy",
    "Sampler",
    "Sdar",
    "Threshold",
]
