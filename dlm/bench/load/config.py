"""The schemas of `target=server`: what is sent, and which servers are compared. Knows neither torch nor HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dlm.data.prompts import JsonlPrompts

OWN_FIELDS = ("model", "messages", "stream", "stream_options", "max_tokens", "temperature", "n", "seed")
"""Fields of a body that other keys of the workload set."""
DEFAULT, ALL = "default", "all"


@dataclass
class LoadConfig:
    """The requests that a server gets; a row of the table for each kind of load.

    Attributes:
        concurrency: closed loop: clients, each of which sends its next request when it has its answer.
        rates: open loop: requests a second on average, sent whether or not there are answers.
        bursts: of the open loop: groups of so many requests on average (of geometric size) come at once.
        rounds: turns; in each, one server after the other gets the same requests.
        requests: of a round, to each server, at most.
        seconds: of a round, after which no further request is sent.
        warmup: requests before all others, which do not count.
        streamed: share of requests whose answers are streamed.
        max_tokens, temperatures, n, algorithms: one of each is drawn for each request.
        fields: sent with every request.
        prompts: a file with one JSON object a line; None makes prompts of random words, as long as those of GSM8K.
        prompt_field: of that file.
        timeout: seconds that a client waits for any next byte.
        seed: of all that is drawn.
    """

    concurrency: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    bursts: list[float] = field(default_factory=lambda: [1.0])
    rounds: int = 2
    requests: int = 64
    seconds: float = 30.0
    warmup: int = 4
    streamed: float = 0.5
    max_tokens: list[int] = field(default_factory=lambda: [64])
    temperatures: list[float] = field(default_factory=lambda: [0.0])
    n: list[int] = field(default_factory=lambda: [1])
    algorithms: list[str] = field(default_factory=lambda: [DEFAULT])
    fields: dict[str, Any] = field(default_factory=dict)
    prompts: str | None = None
    prompt_field: str = "prompt"
    timeout: float = 120.0
    seed: int = 0

    def faults(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        if not self.concurrency and not self.rates:
            found.append("workload.concurrency and workload.rates are both empty; give one of them a value")
        for name, least in {"concurrency": 1, "bursts": 1, "max_tokens": 1, "n": 1, "temperatures": 0}.items():
            given = getattr(self, name)
            if min(given, default=least) < least or (not given and name != "concurrency"):
                found.append(f"workload.{name}={list(given)} must be a list of numbers from {least}")
        if min(self.rates, default=1) <= 0:
            found.append(f"workload.rates={self.rates} must be above 0")
        for name, least in {"rounds": 1, "requests": 1, "warmup": 0}.items():
            if getattr(self, name) < least:
                found.append(f"workload.{name}={getattr(self, name)} must be at least {least}")
        for name in ("seconds", "timeout"):
            if not getattr(self, name) > 0:
                found.append(f"workload.{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.streamed <= 1:
            found.append(f"workload.streamed={self.streamed} must be 0..1")
        if not self.algorithms:
            found.append("workload.algorithms=[] must name some, or [default]")
        own = [name for name in self.fields if name in OWN_FIELDS]
        if own:
            found.append(f"workload.fields.{own[0]}: the workload has a key of its own for that")
        if self.prompts is not None:
            found += [one.replace("data.path", "workload.prompts") for one in JsonlPrompts(self.prompts).faults()]
        return found


@dataclass
class CompareConfig:
    """Servers that the bench starts, asks by turns and stops.

    Attributes:
        models: by the title of a table, arguments of `python -m dlm.serve` for all of its servers.
        servers: by name, those of one server.
    """

    models: dict[str, list[str]] = field(default_factory=dict)
    servers: dict[str, list[str]] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = [f"compare.{name} is empty" for name in ("models", "servers") if not getattr(self, name)]
        places = ("host", "port", "worker_base_port", "run_dir")
        for name, arguments in [*self.models.items(), *self.servers.items()]:
            for argument in arguments:
                if argument.partition("=")[0] in places:
                    found.append(f"compare: {argument!r} of {name!r} is chosen by the bench; leave it out")
        return found
