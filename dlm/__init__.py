"""Decoding for diffusion language models: exact, batched, fast.

`LLM`, `SamplingParams` and `SparseConfig` are imported when they are first used, so that importing the package, as
every entry point does, loads neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.llm import LLM
    from dlm.sampling import SamplingParams, SparseConfig

__version__ = "0.1.0"

__all__ = ["LLM", "SamplingParams", "SparseConfig", "__version__"]

_HOMES = {"LLM": "dlm.llm", "SamplingParams": "dlm.sampling", "SparseConfig": "dlm.sampling"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
