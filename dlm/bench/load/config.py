"""Schemas of `target=server`: the requests, and the servers to compare. Independent of torch and HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dlm.data.prompts import JsonlPrompts

OWN_FIELDS = ("model", "messages", "stream", "stream_options", "max_tokens", "temperature", "n", "seed")
"""Body fields that other keys of the workload set."""
DEFAULT, ALL = "default", "all"


@dataclass
class LoadConfig:
    """The requests sent to a server; one table row for each kind of load.

    Attributes:
        concurrency: closed loop: number of clients, each sending its next request once the previous one is answered.
        rates: open loop: mean requests per second, sent regardless of answers.
        bursts: open loop: mean size of the groups (geometric) in which requests arrive.
        rounds: in each, one server after the other gets the same requests.
        requests: at most this many in a round, to each server.
        seconds: of a round, after which no more requests are sent.
        warmup: uncounted requests sent first.
        streamed: share of requests with streamed answers.
        max_tokens, temperatures, n, algorithms: one of each is drawn for each request.
        fields: sent with every request.
        prompts: a JSONL file; None: prompts of random words, as long as those of GSM8K.
        prompt_field: of that file.
        timeout: seconds that a client waits for the next byte.
        seed: of all random draws.
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
        """A message for every invalid value."""
        found = []
        if not self.concurrency and not self.rates:
            found.append("workload.concurrency and workload.rates are both empty; set one of them")
        for name, least in {"concurrency": 1, "bursts": 1, "max_tokens": 1, "n": 1, "temperatures": 0}.items():
            given = getattr(self, name)
            if min(given, default=least) < least or (not given and name != "concurrency"):
                found.append(f"workload.{name}={list(given)} must be a list of numbers, each at least {least}")
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
            found.append("workload.algorithms=[] is empty; name some, or use [default]")
        own = [name for name in self.fields if name in OWN_FIELDS]
        if own:
            found.append(f"workload.fields.{own[0]}: the workload has its own key for that; set it instead")
        if self.prompts is not None:
            found += [one.replace("data.path", "workload.prompts") for one in JsonlPrompts(self.prompts).faults()]
        return found


@dataclass
class CompareConfig:
    """Servers that the bench starts, loads in turn and stops.

    Attributes:
        models: table title -> `python -m dlm.serve` arguments for all of its servers.
        servers: server name -> its own arguments.
    """

    models: dict[str, list[str]] = field(default_factory=dict)
    servers: dict[str, list[str]] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """A message for every invalid value."""
        found = [f"compare.{name} is empty" for name in ("models", "servers") if not getattr(self, name)]
        places = ("host", "port", "worker_base_port", "run_dir")
        for name, arguments in [*self.models.items(), *self.servers.items()]:
            for argument in arguments:
                if argument.partition("=")[0] in places:
                    found.append(f"compare: {argument!r} of {name!r} is chosen by the bench; leave it out")
        return found
