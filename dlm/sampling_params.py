"""What a caller of the library asks for: how one prompt is decoded, and how sparsely it attends. Values only; importing
this loads no torch.

    SamplingParams(gen_length=64, algorithm="dual_cache", threshold=0.9, stop=["\\n\\n"])
    SparseConfig(retention_ratio=0.25)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from dlm.decoding.params import MAX_LENGTH, PARAM_NAMES, check_whole
from dlm.decoding.params import SamplingParams as DecoderParams
from dlm.errors import RequestError

if TYPE_CHECKING:
    from dlm.decoding.engines import Engine, Sparse
    from dlm.decoding.samplers import Sampler
    from dlm.models.architecture import AttentionKind
    from dlm.models.families import Family

AUTO = "auto"
BY_CONFIDENCE = "low_confidence"


class Unnamed(int):
    """A default that the caller did not write: equal to the same number, and told apart from it by its type, so that a
    better default (the model's, a sparse config's) may take its place."""


BLOCK_LENGTH = Unnamed(32)


@dataclass(frozen=True, kw_only=True)
class SamplingParams(DecoderParams):
    """How one prompt is decoded. The fields of `dlm.decoding.params.SamplingParams` are documented there.

    Below, None stands for the default of the algorithm; a parameter that the algorithm does not have is refused when
    the request is made. Ranges and meanings are those of the engine or sampler that has a field of the name
    (`dlm.decoding.engines`, `dlm.decoding.samplers`).

    Attributes:
        block_length: as in the decoder. Where it is left out, 32; the model's own for models trained on blocks of one
            length; `default_block_len` with a sparse config.
        algorithm: name or alias of a published algorithm; None or `auto` is the family's default. `basic`,
            `prefix_cache` and `dual_cache` reveal by `factor` if given, else by `threshold` if given, else by `steps`.
        remasking: the order of samplers that choose one: `random`, `entropy`, `margin`; `low_confidence` leaves it to
            the algorithm, which ranks by confidence unless its name says otherwise.
        stop: the answer ends before the first of these strings; one string or several.
        threshold, factor, low_threshold, remask_threshold, gamma, kl_threshold, history, credit_alpha, boost_gamma,
        decay_beta, steps_per_block, minimal_topk, editing_threshold, num_to_transfer, max_post_steps,
        remasking_strategy, confidence_threshold, alg, alg_temp, eps: of samplers.
        prefix_look, after_look, warmup_steps, maximum_unroll, expected_tpf, cont_weight_init, cont_weight_growth,
        cont_weight, threshold_decay, retention_ratio, delay_step, kernel_size, head_select: of engines.

    Raises:
        RequestError: a `ValueError` that names each wrong field, its value and its range.
    """

    block_length: int = BLOCK_LENGTH
    algorithm: str | None = None
    remasking: str = BY_CONFIDENCE
    stop: Sequence[str] = ()

    threshold: float | None = None
    factor: float | None = None
    low_threshold: float | None = None
    remask_threshold: float | None = None
    gamma: float | None = None
    kl_threshold: float | None = None
    history: int | None = None
    credit_alpha: float | None = None
    boost_gamma: float | None = None
    decay_beta: float | None = None
    steps_per_block: int | None = None
    minimal_topk: int | None = None
    editing_threshold: float | None = None
    num_to_transfer: int | None = None
    max_post_steps: int | None = None
    remasking_strategy: str | None = None
    confidence_threshold: float | None = None
    alg: str | None = None
    alg_temp: float | None = None
    eps: float | None = None

    prefix_look: int | None = None
    after_look: int | None = None
    warmup_steps: int | None = None
    maximum_unroll: int | None = None
    expected_tpf: int | None = None
    cont_weight_init: float | None = None
    cont_weight_growth: float | None = None
    cont_weight: float | None = None
    threshold_decay: float | None = None
    retention_ratio: float | None = None
    delay_step: int | None = None
    kernel_size: int | None = None
    head_select: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        elif isinstance(self.stop, Sequence):
            object.__setattr__(self, "stop", tuple(self.stop))
        super().__post_init__()

    def faults(self) -> list[str]:
        found = super().faults()
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            found.append(f"stop={self.stop!r:.80} must be a string or a list of strings, none of them empty")
        found += _algorithm_faults(self.algorithm)
        for name, value in self.options.items():
            found += _option_faults(name, value)
        if self.threshold is not None and self.factor is not None:
            found.append(f"threshold={self.threshold} and factor={self.factor}: a prompt is decoded by one of them")
        return found

    @property
    def options(self) -> dict[str, Any]:
        """The parameters of the algorithm that were given."""
        given = {name: getattr(self, name) for name in OPTION_NAMES}
        if self.remasking != BY_CONFIDENCE:
            given["remasking"] = self.remasking
        return {name: value for name, value in given.items() if value is not None}

    def translate(
        self,
        family: Family,
        attention: AttentionKind,
        block_length: int | None = None,
        sparse: SparseConfig | None = None,
    ) -> tuple[DecoderParams, Engine, Sampler]:
        """What the decoder takes for a prompt.

        Args:
            family: of the model.
            attention: of its architecture.
            block_length: of the blocks that it was trained on, if there are any.
            sparse: how the prompt attends.

        Raises:
            RequestError: an algorithm that the family cannot run, or a parameter that is not the algorithm's.
        """
        from dlm.decoding.algorithms import compose

        engine, sampler = compose(self.algorithm, self.options, family=family, attention=attention)
        values = {name: getattr(self, name) for name in PARAM_NAMES}
        length = block_length
        if sparse is not None:
            engine = sparse.replace(engine, self, family)
            length = sparse.default_block_len if sparse.enabled else length
        if isinstance(self.block_length, Unnamed):
            values["block_length"] = length or int(self.block_length)
        return DecoderParams(**values), engine, sampler


OPTION_NAMES = tuple(
    field.name for field in fields(SamplingParams) if field.name not in (*PARAM_NAMES, "algorithm", "remasking", "stop")
)
"""Fields that hold the parameters of engines and samplers; None where they are not given."""


@cache
def option_owners() -> dict[str, tuple[type, ...]]:
    """Which engines and samplers have a parameter of each name."""
    from dlm.decoding.engines import ENGINES
    from dlm.decoding.samplers import SAMPLERS

    owners: dict[str, tuple[type, ...]] = {}
    for part in (*ENGINES.values(), *SAMPLERS.values()):
        for field in fields(part):  # type: ignore[arg-type]  # the protocols do not say that parts are dataclasses
            owners[field.name] = (*owners.get(field.name, ()), part)
    del owners["base"]  # an engine inside another, which an algorithm's name decides
    return owners


def _algorithm_faults(name: object) -> list[str]:
    """What is wrong with the name of an algorithm, whatever the model."""
    from dlm.decoding.algorithms import canonical

    if name is None or name == AUTO:
        return []
    if not isinstance(name, str):
        return [f"algorithm={name!r} must be the name of an algorithm, or None"]
    try:
        canonical(name)
    except RequestError as error:
        return [str(error)]
    return []


def _option_faults(name: str, value: Any) -> list[str]:
    """What every engine and sampler with a parameter of this name has against the value."""
    refusals = []
    for owner in option_owners()[name]:
        try:
            owner(**{name: value})
        except RequestError as error:
            refusals.append(str(error))
        else:
            return []
    return refusals[:1]


@dataclass(frozen=True)
class SparseConfig:
    """Attention to the retained share of cached tokens outside the block (the engine `sparse`).

    It takes the place of the algorithm's engine; the algorithm's sampler stays.

    Attributes:
        enabled: False is exactly what the prompt is decoded with when there is no sparse config.
        retention_ratio: share of the positions outside the block whose keys and values are kept, 0..1.
        delay_step: ordinary steps at the start of each block, before the one that selects.
        default_block_len: block length of requests that name none, 1..8192.
        head_select: each key/value head keeps its own positions, equally many; otherwise all heads keep the same.

    Raises:
        RequestError: a `ValueError` that names the wrong field, its value and its range.
    """

    enabled: bool = True
    retention_ratio: float = 0.5
    delay_step: int = 1
    default_block_len: int = 32
    head_select: bool = True

    def __post_init__(self) -> None:
        for name in ("enabled", "head_select"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name}={getattr(self, name)!r} must be True or False")
        check_whole("default_block_len", self.default_block_len, 1, MAX_LENGTH)
        self.engine()

    def engine(self) -> Sparse:
        """The engine with these values."""
        from dlm.decoding.engines import Sparse

        return Sparse(self.retention_ratio, self.delay_step, head_select=self.head_select)

    def replace(self, engine: Engine, params: SamplingParams, family: Family) -> Engine:
        """`engine`, or the sparse one in its place. Raises `RequestError` where one goes against the other."""
        from dlm.decoding.engines import DualCache, Full, PrefixCache, Sparse

        if not self.enabled:
            if isinstance(engine, Sparse):
                raise RequestError(f"algorithm={params.algorithm!r} goes against SparseConfig(enabled=False)")
            return engine
        if "sparse" not in family.algorithms:
            raise RequestError(
                f"SparseConfig: models of the family {family.name} cannot attend sparsely; leave it out, or set "
                f"enabled=False (algorithms of this family: {', '.join(family.algorithms)})"
            )
        doubled = [field.name for field in fields(engine) if field.name in params.options]  # type: ignore[arg-type]  # every engine is one
        if doubled:
            raise RequestError(f"{', '.join(doubled)}: a sparse config takes the engine's place; leave it out")
        if not isinstance(engine, Full | PrefixCache | DualCache | Sparse):
            raise RequestError(
                f"SparseConfig: algorithm={params.algorithm!r} has an engine of its own, {engine.name}; choose one "
                "with engine full, prefix_cache or dual_cache"
            )
        return self.engine()
