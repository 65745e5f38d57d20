"""Decoding for diffusion language models: exact, batched, fast.

`LLM`, `SamplingParams` and `SparseConfig` are imported when they are first used, so that importing the package, as
every entry point does, loads neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm._lazy import exports
from dlm.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DLMError,
    IncompleteRunError,
    MissingExtraError,
    NotFiniteError,
    RequestError,
    RunError,
)
from dlm.models.mkl import request_strict_products

if TYPE_CHECKING:
    from dlm.llm import LLM
    from dlm.sampling_params import SamplingParams, SparseConfig

__version__ = "0.2.0"

request_strict_products()

__all__ = [
    "LLM",
    "CheckpointError",
    "ConfigError",
    "DLMError",
    "DataError",
    "IncompleteRunError",
    "MissingExtraError",
    "NotFiniteError",
    "RequestError",
    "RunError",
    "SamplingParams",
    "SparseConfig",
]

__getattr__, __dir__ = exports(
    __name__, {"LLM": "dlm.llm", "SamplingParams": "dlm.sampling_params", "SparseConfig": "dlm.sampling_params"}
)
