"""Published algorithms by name: each pairs an engine with its sampler; also builds both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from dlm.decoding.engines import ENGINES, Engine, Smooth, Vicinity
from dlm.decoding.samplers import SAMPLERS, Sampler
from dlm.errors import RequestError

if TYPE_CHECKING:
    from dlm.models.architecture import AttentionKind
    from dlm.models.families import Family


class FamilyDefault:
    """Placeholder for the engine or sampler that the algorithm uses for the checkpoint's family."""


@dataclass(frozen=True)
class Algorithm:
    """Names of an engine and its sampler.

    Attributes:
        engine, sampler: names in `ENGINES` and `SAMPLERS`.
        aliases: other accepted names.
        flexible: the request picks the sampler: `factor` if set, else `threshold` if set, else `fixed`.
        source: the paper or program.
    """

    engine: str
    sampler: str
    aliases: tuple[str, ...] = ()
    flexible: bool = False
    source: str = field(default="", compare=False)

    def engine_for(self, attention: AttentionKind) -> str:
        """The engine's name for this kind of attention: models with blocks cache exactly where bidirectional ones
        use `dual_cache`."""
        if self.engine != "dual_cache" or attention == "bidirectional":
            return self.engine
        causal = "autoregressive" if self.sampler == "leftmost" else "causal_commit"
        return {"block_causal": "block_causal", "causal_context": causal}[attention]


ALGORITHMS: dict[str, Algorithm] = {
    "basic": Algorithm("full", "fixed", ("no_cache", "simple"), True, "LLaDA, Fast-dLLM"),
    "prefix_cache": Algorithm("prefix_cache", "threshold", ("prefix", "cache"), True, "Fast-dLLM"),
    "dual_cache": Algorithm("dual_cache", "threshold", ("dual", "double_cache"), True, "Fast-dLLM"),
    "dinfer_blockwise": Algorithm("dual_cache", "dinfer_threshold", ("dinfer", "blockwise"), source="dInfer"),
    "dinfer_hierarchy": Algorithm("dual_cache", "hierarchy", ("hierarchy",), source="dInfer"),
    "dinfer_credit": Algorithm("dual_cache", "credit", ("credit",), source="dInfer"),
    "dinfer_vicinity": Algorithm("vicinity", "dinfer_threshold", ("vicinity",), source="dInfer"),
    "dinfer_soft": Algorithm("smooth", "dinfer_threshold", ("smooth",), source="dInfer"),
    "sparse": Algorithm("sparse", "fixed", flexible=True, source="dLLM-Serve, Sparse-dLLM"),
    "entropy_bound": Algorithm("dual_cache", "entropy_bound", source="arXiv 2505.24857"),
    "klass": Algorithm("dual_cache", "klass", source="arXiv 2511.05664"),
    "ar": Algorithm("dual_cache", "leftmost", source="autoregressive order"),
    "linear_spec": Algorithm("linear_spec", "linear_spec", source="Nemotron-Labs-Diffusion"),
    "remask_hierarchy": Algorithm("full", "remask_hierarchy", source="dInfer"),
    "llada2": Algorithm("block_causal", "llada2", source="LLaDA2.0"),
    "llada21": Algorithm("block_causal", "llada21_edit", source="LLaDA2.1"),
    "sdar": Algorithm("block_causal", "sdar", source="SDAR"),
    "nemotron": Algorithm("causal_commit", "threshold", ("nemotron_native",), source="Nemotron-Labs-Diffusion"),
    "dream": Algorithm("full", "dream", source="Dream"),
    "fastdllm_dream": Algorithm("full", "fastdllm_dream", source="Fast-dLLM"),
}


def canonical(name: str) -> str:
    """The name in `ALGORITHMS` for a name or alias; otherwise raises `RequestError` with the known names."""
    for key, algorithm in ALGORITHMS.items():
        if name == key or name in algorithm.aliases:
            return key
    raise RequestError(f"algorithm={name!r} is unknown; known: auto, {', '.join(ALGORITHMS)}")


def resolve(name: str | None, family: Family) -> str:
    """Name of the algorithm for a family; None and `auto` are the family's default.

    Raises `RequestError` if the algorithm is unknown or the family cannot run it, listing those it can run.
    """
    chosen = family.default_algorithm if name is None or name == "auto" else canonical(name)
    if chosen not in family.algorithms:
        raise RequestError(
            f"algorithm={chosen!r} cannot run on a {family.name} model; it runs {', '.join(family.algorithms)}"
        )
    return chosen


def compose(
    name: str | None, options: Mapping[str, Any], *, family: Family, attention: AttentionKind
) -> tuple[Engine, Sampler]:
    """Engine and sampler of a named algorithm.

    Args:
        name: a name or an alias; None and `auto` are the family's default.
        options: engine and sampler parameters by field name; None counts as unset.
        family: the checkpoint's family.
        attention: its kind of attention.

    Raises `RequestError` for an algorithm that the family cannot run, or an unknown or out-of-range parameter.
    """
    chosen = resolve(name, family)
    algorithm, given = ALGORITHMS[chosen], {key: value for key, value in options.items() if value is not None}
    engine_name = algorithm.engine_for(attention)
    engine_type, sampler_type = ENGINES[engine_name], SAMPLERS[_sampler_name(chosen, given)]
    for_engine, for_sampler = _names(engine_type), _names(sampler_type)
    foreign = sorted(given.keys() - for_engine - for_sampler)
    if foreign:
        known = ", ".join(sorted(for_engine | for_sampler)) or "none"
        raise RequestError(
            f"{', '.join(foreign)} is not a parameter of algorithm={chosen!r}; its parameters are {known}"
        )
    engine_options = {key: value for key, value in given.items() if key in for_engine}
    engine = _smooth(engine_options) if engine_type is Smooth else engine_type(**engine_options)
    return engine, sampler_type(**{key: value for key, value in given.items() if key in for_sampler})


def complete(
    engine: Engine | FamilyDefault,
    sampler: Sampler | FamilyDefault,
    algorithm: str,
    traits: Callable[[], tuple[Family, AttentionKind]],
) -> tuple[Engine, Sampler]:
    """Engine and sampler with each `FamilyDefault` replaced by that of `algorithm` for the model's family.

    `traits` returns the family and its kind of attention; it is called only if there is a `FamilyDefault`. Raises
    `RequestError` if the family cannot run the algorithm.
    """
    if isinstance(engine, FamilyDefault) or isinstance(sampler, FamilyDefault):
        family, attention = traits()
        own = compose(algorithm, {}, family=family, attention=attention)
        engine = own[0] if isinstance(engine, FamilyDefault) else engine
        sampler = own[1] if isinstance(sampler, FamilyDefault) else sampler
    return engine, sampler


def _sampler_name(chosen: str, given: Mapping[str, Any]) -> str:
    algorithm = ALGORITHMS[chosen]
    if not algorithm.flexible:
        return algorithm.sampler
    if "factor" in given and "threshold" in given:
        raise RequestError("factor and threshold are both set; a request can use only one")
    if "factor" in given:
        return "factor"
    return "threshold" if "threshold" in given else "fixed"


def _names(kind: type[Any]) -> set[str]:
    """Parameter names of an engine or sampler; for `smooth`, including those of its base engine."""
    own = {one.name for one in fields(kind)}
    return own - {"base"} | {one.name for one in fields(Vicinity)} if kind is Smooth else own


def _smooth(options: Mapping[str, Any]) -> Engine:
    own = {one.name for one in fields(Smooth)}
    return Smooth(
        base=Vicinity(**{key: value for key, value in options.items() if key not in own}),
        **{key: value for key, value in options.items() if key in own},
    )
