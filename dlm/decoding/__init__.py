"""Decoding: requests of token ids in, completions out. Knows no text, no Hydra, no Lightning and no HTTP.

Read `decoder.py` first: it holds the only loop. `types.py` has the values that engines, samplers and canvases exchange.
"""

__all__ = [
    "algorithms",
    "canvas",
    "cuda",
    "decoder",
    "ending",
    "engines",
    "expansion",
    "kv",
    "layout",
    "memory",
    "noise",
    "options",
    "outcomes",
    "packing",
    "params",
    "request",
    "samplers",
    "scheduler",
    "scoring",
    "tensor_parallel",
    "types",
    "validation",
]
