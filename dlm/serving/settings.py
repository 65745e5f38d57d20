"""What a server is told: plain values that a file can hold. No secret is among them: the key that clients must show is
read from the environment variable `DLM_API_KEY`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from dlm.errors import ConfigError

KEY_VARIABLE = "DLM_API_KEY"
IDENTITY_VARIABLE = "DLM_WORKER"
"""Tells a worker process which one of a fleet it is."""
ROUTERS = ("auto", "none", "only")
"""Whether a router stands in front of the workers: where there are several, never, or it alone without workers."""
POLICIES = ("round_robin", "random", "power_of_two", "consistent_hash", "sticky_least_loaded")
"""How the router chooses a worker; `power_of_two` is the less loaded of two drawn ones."""


@dataclass(frozen=True)
class ServerSettings:
    """One worker.

    Attributes:
        host: where it listens.
        algorithm: of requests that name none; `auto` is the family's default.
        generation: defaults of requests by field names of `dlm.SamplingParams`; None counts as not given.
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
        header_timeout: seconds in which a connection must send a request's head, and then its body, and in which its
            client must read something of what waits for it.
        drain_timeout: seconds that running requests have to finish after SIGTERM.
        result_ttl: seconds that a submitted request's result is kept.
        cors_origins: origins whose pages may call the server; `*` is all.
        weight_control: whoever has the key may give the model new weights, pause it and let it sleep.
        log_format: `text` or `json`.
        index, workers: which worker this is, and of how many.
        peers: URLs of all workers, this one among them; empty for one alone.
        behind_router: requests come through the router, whose own keys in bodies are no wishes of the client.
    """

    host: str = "127.0.0.1"
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
    weight_control: bool = False
    log_format: str = "text"
    index: int = 0
    workers: int = 1
    peers: tuple[str, ...] = ()
    behind_router: bool = False

    @property
    def max_body_bytes(self) -> int:
        """`max_body_mib` in bytes."""
        return int(self.max_body_mib * 2**20)


@dataclass(frozen=True)
class Identity:
    """Which worker of a fleet a process is.

    Attributes:
        index, workers, peers: as in `ServerSettings`.
        parent: process whose end ends this one.
    """

    index: int
    workers: int
    peers: tuple[str, ...]
    parent: int

    def text(self) -> str:
        """For the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def here(cls) -> Identity | None:
        """That of this process; None outside a fleet."""
        text = os.environ.get(IDENTITY_VARIABLE)
        if text is None:
            return None
        values = json.loads(text)
        return cls(**{**values, "peers": tuple(values["peers"])})


@dataclass(frozen=True)
class FleetSettings:
    """Workers and the router in front of them.

    Attributes:
        router: of `ROUTERS`.
        devices: workers that are started here; with `router=only` none is.
        peers: URLs of all workers, also of those on other machines.
        first_worker: index among them of the first that is started here.
        start_timeout: seconds that the workers may take to be ready.
        gpu_ids: of the workers, in order; empty takes the first where there are any.
        host, port: where clients are let in. Workers are on loopback, and with `router=none` on `host`.
        worker_base_port: of the first worker that is started here; the others follow.
        policy: of `POLICIES`.
        health_check_interval: seconds between the router's looks at a worker.
        request_timeout, max_body_mib, header_timeout, cors_origins: as in `ServerSettings`.
        model: what is served, for `server.json`.
        run_dir: folder of `server.json` and `logs/`.
    """

    router: str
    devices: int
    peers: tuple[str, ...]
    first_worker: int
    start_timeout: float
    gpu_ids: tuple[int, ...]
    host: str
    port: int
    worker_base_port: int
    policy: str
    health_check_interval: float
    request_timeout: float
    max_body_mib: float
    header_timeout: float
    cors_origins: tuple[str, ...]
    model: str
    run_dir: str

    own_keys: ClassVar[tuple[str, ...]] = (
        "router", "devices", "worker_urls", "first_worker", "start_timeout", "gpu_ids", "host", "port",
        "worker_base_port", "policy", "health_check_interval", "cors_origins",
    )  # fmt: skip
    """Keys that the workers do not get."""

    @property
    def max_body_bytes(self) -> int:
        """`max_body_mib` in bytes."""
        return int(self.max_body_mib * 2**20)

    @property
    def url(self) -> str:
        """Where clients on this machine are let in."""
        return near(self.host, self.port)

    @property
    def worker_host(self) -> str:
        """Where the workers listen."""
        return self.host if self.router == "none" else "127.0.0.1"

    def own_url(self, port: int) -> str:
        """Where this machine finds a worker of its own."""
        return near(self.worker_host, port)

    def router_command(self, program: str, port: int, own_metrics: int) -> list[str]:
        """The router's command line. It holds no key: clients' keys are passed on to the workers, which check them.

        It makes no second try by itself (a request that ran into its deadline would be decoded again and again), and
        takes no worker out of service for the errors that it answers.

        Args:
            program: the router.
            port: where it listens, on this machine alone.
            own_metrics: port of the router's own metrics; its default is one for all routers of a machine.
        """
        return [
            program,
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--policy", self.policy),
            *("--health-check-interval-secs", str(max(1, round(self.health_check_interval)))),
            *("--health-check-timeout-secs", "5", "--health-failure-threshold", "1", "--health-success-threshold", "1"),
            *("--disable-retries", "--disable-circuit-breaker"),
            *("--request-timeout-secs", str(max(1, round(self.request_timeout + 5)))),
            *("--max-payload-size", str(int((self.max_body_mib + 1) * 2**20))),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(own_metrics)),
            *("--cors-allowed-origins", near("127.0.0.1", port)),  # without any it would let every page in
            *("--worker-urls", *self.peers),
        ]


def near(host: str, port: int) -> str:
    """URL on this machine of what listens on `host` and `port`."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def api_key() -> str | None:
    """The key that clients must show; None where the variable is unset or empty.

    Raises `ConfigError` for one that no client could send in a header as it is; the message does not show the key.
    """
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None:
        return None
    if key != key.strip():
        raise ConfigError(
            f"{KEY_VARIABLE} begins or ends with white space, which clients cannot send; a file's last line end is "
            f"left out by {KEY_VARIABLE}=$(cat file)"
        )
    odd = next((place for place, one in enumerate(key, 1) if not " " <= one <= "~"), None)
    if odd is not None:
        raise ConfigError(
            f"{KEY_VARIABLE}: character {odd} of {len(key)} is {key[odd - 1]!a}; use letters, digits and signs of "
            "ASCII, which every client sends alike"
        )
    return key
