"""The published algorithms by name: each an engine with the sampler it is known with."""

from __future__ import annotations

from dataclasses import dataclass

from dlm.errors import ConfigError


@dataclass(frozen=True)
class Algorithm:
    """Names of an engine and of the sampler that goes with it when none is asked for."""

    engine: str
    sampler: str
    aliases: tuple[str, ...] = ()


ALGORITHMS: dict[str, Algorithm] = {
    "basic": Algorithm("full", "fixed", ("no_cache", "simple")),
    "prefix_cache": Algorithm("prefix_cache", "threshold", ("prefix", "cache")),
    "dual_cache": Algorithm("dual_cache", "threshold", ("dual", "double_cache")),
    "dinfer_blockwise": Algorithm("dual_cache", "dinfer_threshold", ("dinfer", "blockwise")),
}


def resolve(name: str) -> Algorithm:
    """The algorithm called `name` or known by it; `ConfigError` lists the names otherwise."""
    for key, algorithm in ALGORITHMS.items():
        if name == key or name in algorithm.aliases:
            return algorithm
    raise ConfigError(f"algorithm {name!r} is unknown; known are {', '.join(ALGORITHMS)}")
