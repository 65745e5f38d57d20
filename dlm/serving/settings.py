"""Server settings: plain values that a file can hold. They contain no secret: the key that clients must send is read
from the environment variable `DLM_API_KEY`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from dlm.errors import ConfigError

KEY_VARIABLE = "DLM_API_KEY"
IDENTITY_VARIABLE = "DLM_WORKER"
"""Set for a worker process: its `Identity` within the fleet."""
ROUTERS = ("auto", "none", "only")
"""Whether a router runs in front of the workers: if there are several, never, or a router without workers."""
POLICIES = ("round_robin", "random", "power_of_two", "consistent_hash", "sticky_least_loaded")
"""How the router chooses a worker; `power_of_two` takes the less loaded of two drawn at random."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one worker.

    Attributes:
        host: address to listen on.
        algorithm: for requests that name none; `auto` is the family's default.
        generation: request defaults by field name of `dlm.SamplingParams`; None counts as unset.
            Algorithm parameters apply to `algorithm` only.
        names: names that clients may send as `model`; answers carry the first.
        device: `auto`, `cpu`, `cuda`, `cuda:<n>`.
        batch_size: sequences decoded at once.
        max_wait_time: seconds the oldest waiting request waits for others while the batch is not full.
        max_num_batched_tokens: positions recomputed in one forward.
        max_model_len: maximum positions of a prompt and its answer together; None takes the model's limit.
        gpu_memory_utilization: as in `dlm.LLM`.
        enforce_eager: capture no CUDA graphs.
        queue_size: sequences that may wait; requests beyond it get 429.
        request_timeout: seconds until a request gets 504.
        max_body_mib: larger bodies get 413.
        header_timeout: seconds within which a connection must send a request's head, then its body, and within which
            its client must read some of the data pending for it.
        drain_timeout: seconds that running requests have to finish after SIGTERM.
        result_ttl: seconds a submitted request's result is kept.
        cors_origins: origins whose pages may call the server; `*` allows all.
        weight_control: clients with the key may update the weights, pause the server and put it to sleep.
        log_format: `text` or `json`.
        index, workers: index of this worker, and the number of workers.
        peers: URLs of all workers, including this one; empty for a single worker.
        behind_router: requests come through the router; fields it adds to bodies are not the client's options.
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
        parent: id of the process that this one ends with.
    """

    index: int
    workers: int
    peers: tuple[str, ...]
    parent: int

    def text(self) -> str:
        """The value of the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def here(cls) -> Identity | None:
        """This process's identity; None outside a fleet."""
        text = os.environ.get(IDENTITY_VARIABLE)
        if text is None:
            return None
        values = json.loads(text)
        return cls(**{**values, "peers": tuple(values["peers"])})


@dataclass(frozen=True)
class FleetSettings:
    """Workers and the router in front of them.

    Attributes:
        router: one of `ROUTERS`.
        devices: number of workers started here; none with `router=only`.
        peers: URLs of all workers, including those on other machines.
        first_worker: index in `peers` of the first worker started here.
        start_timeout: seconds within which the workers must be ready.
        gpu_ids: GPUs of the workers, in order; empty takes the first ones, if any.
        host, port: address for clients. Workers listen on loopback, or on `host` with `router=none`.
        worker_base_port: port of the first worker started here; the others use the ports after it.
        policy: one of `POLICIES`.
        health_check_interval: seconds between the router's health checks of a worker.
        request_timeout, max_body_mib, header_timeout, cors_origins: as in `ServerSettings`.
        model: served model name, for `server.json`.
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
    """Config keys not passed on to the workers."""

    @property
    def max_body_bytes(self) -> int:
        """`max_body_mib` in bytes."""
        return int(self.max_body_mib * 2**20)

    @property
    def url(self) -> str:
        """URL for clients on this machine."""
        return near(self.host, self.port)

    @property
    def worker_host(self) -> str:
        """Address the workers listen on."""
        return self.host if self.router == "none" else "127.0.0.1"

    def own_url(self, port: int) -> str:
        """URL of a local worker, as reached from this machine."""
        return near(self.worker_host, port)

    def router_command(self, program: str, port: int, own_metrics: int) -> list[str]:
        """The router's command line. It contains no key: clients' keys are forwarded to the workers, which check them.

        Retries are disabled, since a request that timed out would be decoded again and again. So is the circuit
        breaker: no worker is taken out of service because of its error responses.

        Args:
            program: path of the router.
            port: loopback port to listen on.
            own_metrics: port of the router's own metrics; its default is the same for all routers of a machine.
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
            *("--cors-allowed-origins", near("127.0.0.1", port)),  # without any, it would allow every page
            *("--worker-urls", *self.peers),
        ]


def near(host: str, port: int) -> str:
    """URL under which a listener on `host` and `port` is reached from this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def api_key() -> str | None:
    """The key that clients must send; None if the variable is unset or empty.

    Raises `ConfigError` for a key that cannot be sent in a header unchanged; the message does not show the key.
    """
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None:
        return None
    if key != key.strip():
        raise ConfigError(
            f"{KEY_VARIABLE} begins or ends with white space, which clients cannot send; to drop a file's trailing "
            f"newline, use {KEY_VARIABLE}=$(cat file)"
        )
    odd = next((place for place, one in enumerate(key, 1) if not " " <= one <= "~"), None)
    if odd is not None:
        raise ConfigError(
            f"{KEY_VARIABLE}: character {odd} of {len(key)} is {key[odd - 1]!a}; use printable ASCII only, which all "
            "clients encode the same way"
        )
    return key
