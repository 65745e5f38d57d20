"""Engines: what each step recomputes. One file per family of engines."""

from dlm.decoding.engines.base import Engine
from dlm.decoding.engines.block_causal import Autoregressive, BlockCausal, CausalCommit, LinearSpec
from dlm.decoding.engines.cached import DualCache, Full, PrefixCache, Vicinity
from dlm.decoding.engines.smooth import Smooth
from dlm.decoding.engines.sparse import Sparse

ENGINES: dict[str, type[Engine]] = {
    engine.name: engine
    for engine in (
        *(Full, PrefixCache, DualCache, Vicinity, Smooth, Sparse),
        *(BlockCausal, CausalCommit, Autoregressive, LinearSpec),
    )
}

__all__ = [
    "ENGINES",
    "Autoregressive",
    "BlockCausal",
    "CausalCommit",
    "DualCache",
    "Engine",
    "Full",
    "LinearSpec",
    "PrefixCache",
    "Smooth",
    "Sparse",
    "Vicinity",
]
