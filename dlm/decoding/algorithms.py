"""The published algorithms by name: each an engine with the sampler it is known with, and how to build both."""

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
    """Stands for an engine or a sampler that the algorithm has for the checkpoint's family."""


@dataclass(frozen=True)
class Algorithm:
    """Names of an engine and of the sampler that goes with it.

    Attributes:
        engine, sampler: names in `ENGINES` and `SAMPLERS`.
        aliases: other names that users type.
        flexible: the sampler follows the request: `factor` if that is given, else `threshold`, else `fixed`.
        source: the paper or program.
    """

    engine: str
    sampler: str
    aliases: tuple[str, ...] = ()
    flexible: bool = False
    source: str = field(default="", compare=False)

    def engine_for(self, attention: AttentionKind) -> str:
        """The engine's name for a model that attends so: what `dual_cache` is to a bidirectional model, exact caching
        is to one with blocks."""
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
    """The name in `ALGORITHMS` that `name` is or stands for; `RequestError` lists the names otherwise."""
    for key, algorithm in ALGORITHMS.items():
        if name == key or name in algorithm.aliases:
            return key
    raise RequestError(f"algorithm={name!r} is unknown; known are auto, {', '.join(ALGORITHMS)}")


def resolve(name: str | None, family: Family) -> str:
    """The name of the algorithm that `name` means for a family; None and `auto` are its default.

    Raises `RequestError` when there is no such algorithm or the family cannot run it, with the list of those it can.
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
        options: parameters of the engine and of the sampler by their field names; None counts as not given.
        family: of the checkpoint.
        attention: of its architecture.

    Raises `RequestError` for an algorithm that the family cannot run, a parameter of neither, or one out of range.
    """
    chosen = resolve(name, family)
    algorithm, given = ALGORITHMS[chosen], {key: value for key, value in options.items() if value is not None}
    engine_name = algorithm.engine_for(attention)
    engine_type, sampler_type = ENGINES[engine_name], SAMPLERS[_sampler_name(chosen, given)]
    for_engine, for_sampler = _names(engine_type), _names(sampler_type)
    foreign = sorted(given.keys() - for_engine - for_sampler)
    if foreign:
        known = ", ".join(sorted(for_engine | for_sampler)) or "none"
        raise RequestError(f"{', '.join(foreign)} is no parameter of algorithm={chosen!r}; its parameters are {known}")
    engine_options = {key: value for key, value in given.items() if key in for_engine}
    engine = _smooth(engine_options) if engine_type is Smooth else engine_type(**engine_options)
    return engine, sampler_type(**{key: value for key, value in given.items() if key in for_sampler})


def complete(
    engine: Engine | FamilyDefault,
    sampler: Sampler | FamilyDefault,
    algorithm: str,
    traits: Callable[[], tuple[Family, AttentionKind]],
) -> tuple[Engine, Sampler]:
    """Engine and sampler as they are; what was left to the model is that of `algorithm` for its family.

    `traits` says the family and how its models attend; it is called where something was left. Raises `RequestError`
    when the family cannot run the algorithm.
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
        raise RequestError("factor and threshold are both given; a request is decoded with one of them")
    if "factor" in given:
        return "factor"
    return "threshold" if "threshold" in given else "fixed"


def _names(kind: type[Any]) -> set[str]:
    """Parameter names of an engine or sampler; those of the engine that `smooth` rides on count as its own."""
    own = {one.name for one in fields(kind)}
    return own - {"base"} | {one.name for one in fields(Vicinity)} if kind is Smooth else own


def _smooth(options: Mapping[str, Any]) -> Engine:
    own = {one.name for one in fields(Smooth)}
    return Smooth(
        base=Vicinity(**{key: value for key, value in options.items() if key not in own}),
        **{key: value for key, value in options.items() if key in own},
    )
