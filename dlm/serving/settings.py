"""What a server is told: plain values that a file can hold. No secret is among them: the key that clients must show is
read from the environment variable `DLM_API_KEY`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

KEY_VARIABLE = "DLM_API_KEY"


@dataclass(frozen=True)
class ServerSettings:
    """One worker.

    Attributes:
        algorithm: of requests that name none; `auto` is the family's default.
        generation: defaults of requests by field names of `dlm.sampling.SamplingParams`; None counts as not given.
            Parameters of an algorithm are defaults of `algorithm` alone.
        names: that clients may write as `model`; the first is told in answers.
        device: `auto`, `cpu`, `cuda`, `cuda:<n>`.
        batch_size: sequences decoded at once.
        max_wait_time: seconds that the oldest waiting request waits for others while the batch is not full.
        max_num_batched_tokens: positions recomputed in one forward.
        max_model_len: positions that a prompt and its answer may take; None is what the model has.
        gpu_memory_utilization: as in `dlm.LLM`.
        enforce_eager: no CUDA graph is captured.
        queue_size: sequences that may wait; more are answered with 429.
        request_timeout: seconds until a request is answered with 504.
        max_body_mib: larger bodies are answered with 413.
        header_timeout: seconds in which a connection must send a request's head, and then its body.
        drain_timeout: seconds that running requests have to finish after SIGTERM.
        result_ttl: seconds that a submitted request's result is kept.
        cors_origins: origins whose pages may call the server; `*` is all.
        log_format: `text` or `json`.
        index, workers: which worker this is, and of how many.
        peers: URLs of all workers, this one among them; empty for one alone.
        restarts: how often the worker was started again.
        behind_router: requests come through the router, whose own keys in bodies are no wishes of the client.
    """

    algorithm: str = "auto"
    generation: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ("model",)
    device: str = "auto"
    batch_size: int = 8
    max_wait_time: float = 0.0
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    queue_size: int = 1024
    request_timeout: float = 300.0
    max_body_mib: float = 4.0
    header_timeout: float = 20.0
    drain_timeout: float = 30.0
    result_ttl: float = 3600.0
    cors_origins: tuple[str, ...] = ()
    log_format: str = "text"
    index: int = 0
    workers: int = 1
    peers: tuple[str, ...] = ()
    restarts: int = 0
    behind_router: bool = False


def api_key() -> str | None:
    """The key that clients must show; None where the variable is unset or empty."""
    return os.environ.get(KEY_VARIABLE) or None
