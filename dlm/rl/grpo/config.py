"""Schemas of `conf/grpo.yaml`, `conf/reward/` and `conf/likelihood/`, and cross-field checks they cannot express."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from dlm.config.build import instantiate, mirror, optional
from dlm.config.checks import CHECKS, check
from dlm.config.schemas import DecoderConfig
from dlm.errors import RequestError
from dlm.likelihood.schemes import Ar, BlockCausal, Coupled, D1OneStep, LladaMC
from dlm.models.lora.training import LoraOptions
from dlm.rl.grpo.objective import Objective
from dlm.rl.grpo.optimizer import PolicyOptimizerOptions
from dlm.rl.grpo.rewards import CheckerReward, FunctionReward
from dlm.rl.likelihoods import StepMap
from dlm.sampling_params import SamplingParams

PRECISIONS = ("32-true", "bf16-mixed")
DTYPES = ("float32", "bfloat16", "float16")
LOOP = ("seed", "n", "record")
"""Sampling parameters that the training loop sets itself."""
Generation = optional("RolledOut", SamplingParams, LOOP)
ObjectiveConfig, OptimizerConfig, LoraConfig = mirror(Objective), mirror(PolicyOptimizerOptions), mirror(LoraOptions)


@dataclass
class ValidationConfig:
    prompts: int = 64
    samples: int = 4
    every: int | None = None


@dataclass
class GrpoConfig:
    """`conf/grpo.yaml`."""

    model: Any = MISSING
    data: Any = MISSING
    reward: Any = MISSING
    likelihood: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    generation: Generation = field(default_factory=Generation)  # type: ignore[valid-type]  # made above
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)  # type: ignore[valid-type]  # made above
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # type: ignore[valid-type]  # made above
    lora: LoraConfig = field(default_factory=LoraConfig)  # type: ignore[valid-type]  # made above
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    steps: int = MISSING
    prompts_per_step: int = 8
    group_size: int = 8
    updates: int = 1
    precision: str = "32-true"
    rollout_dtype: str | None = None
    score_tokens: int = 8192
    keep_every: int | None = 50
    seed: int = 0
    run_dir: str | None = None


def register() -> None:
    """Register the schemas with Hydra; idempotent."""
    store = ConfigStore.instance()
    store.store(group="schema", name="grpo", node=GrpoConfig)
    for name, reward in {"function": FunctionReward, "checker": CheckerReward}.items():
        store.store(group="schema/reward", name=name, node=mirror(reward))
    for scheme in (LladaMC, D1OneStep, Coupled, BlockCausal, Ar):
        store.store(group="schema/likelihood", name=scheme.name, node=mirror(scheme))
    store.store(group="schema/likelihood", name="step_map", node=mirror(StepMap))


def check_grpo(config: DictConfig) -> None:
    """Raise `ConfigError` listing every missing value and fault of `conf/grpo.yaml`, each with its remedy."""
    check(config, {**{parts: CHECKS[parts] for parts in SHARED}, **OWN})


def generation_of(config: DictConfig) -> SamplingParams:
    """The sampling parameters of the answers. Raises `RequestError`."""
    given = {name: value for name, value in config.generation.items() if value is not None}
    return SamplingParams(**given)


def _generation_faults(config: DictConfig) -> list[str]:
    try:
        params = generation_of(config)
    except RequestError as error:
        return [f"generation.{error}"]
    faults = []
    if params.temperature == 0.0:
        faults.append(
            "generation.temperature=0: all answers of a group would be equal; write 1.0, or another number above 0"
        )
    if params.cfg_scale > 0.0:
        faults.append(f"generation.cfg_scale={params.cfg_scale}: guided answers are not the policy's own; leave it out")
    if params.align_blocks:
        faults.append("generation.align_blocks=true: replays would ignore it; leave it out")
    return faults


def _built_faults(key: str) -> Callable[[DictConfig], list[str]]:
    """Faults that a part raises when it is built."""

    def faults(config: DictConfig) -> list[str]:
        try:
            instantiate(config[key])
        except Exception as error:
            if not isinstance(error.__cause__, RequestError):
                raise
            return [f"{key}.{error.__cause__}"]
        return []

    return faults


def _own_faults(key: str) -> Callable[[DictConfig], list[str]]:
    """Faults that a part reports itself."""

    def faults(config: DictConfig) -> list[str]:
        found: list[str] = instantiate(config[key]).faults()
        return found

    return faults


def _trained_faults(config: DictConfig) -> list[str]:
    """Model options that cannot be trained, or not in combination."""
    faults, drafter = _own_faults("lora")(config), config.model.get("drafter_adapter_path")
    if drafter is not None:
        faults.append(f"model.drafter_adapter_path={drafter}: a drafter is neither trained nor saved; leave it out")
    deterministic = config.decoder.deterministic
    if config.lora.rank and deterministic is not None and config.rollout_dtype is None:
        faults.append(
            f"decoder.deterministic={str(deterministic).lower()}: cannot be set for an adapter in training; "
            "leave it at null, or write rollout_dtype=float32 (or another) to decode with a merged copy"
        )
    if config.lora.rank and config.model.get("adapter_path") is not None:
        faults.append(
            f"model.adapter_path={config.model.adapter_path}: stacked adapters cannot be saved as one; merge it "
            "first (python -m dlm.convert), or set lora.rank=0"
        )
    return faults


def _loop_faults(config: DictConfig) -> list[str]:
    faults = [
        f"{name}={value}: must be at least {least}"
        for name, value, least in (
            ("steps", config.steps, 1),
            ("prompts_per_step", config.prompts_per_step, 1),
            ("group_size", config.group_size, 2),
            ("updates", config.updates, 1),
            ("score_tokens", config.score_tokens, 1),
            ("seed", config.seed, 0),
            ("keep_every", config.keep_every, 1),
            ("validation.prompts", config.validation.prompts, 0),
            ("validation.samples", config.validation.samples, 1),
            ("validation.every", config.validation.every, 1),
        )
        if value is not None and value < least
    ]
    if config.validation.prompts == 1:
        faults.append("validation.prompts=1: no standard error from one prompt; write 2 or more, or 0")
    if config.precision not in PRECISIONS:
        faults.append(f"precision={config.precision}: must be one of {', '.join(PRECISIONS)}")
    if config.rollout_dtype not in (None, *DTYPES):
        faults.append(f"rollout_dtype={config.rollout_dtype}: must be null or one of {', '.join(DTYPES)}")
    return faults


LOOP_KEYS = (
    "steps", "prompts_per_step", "group_size", "updates", "score_tokens", "seed", "keep_every", "validation",
    "precision", "rollout_dtype",
)  # fmt: skip
SHARED: tuple[tuple[str, ...], ...] = (("model",), ("data",), ("trainer",), ("decoder", "generation"))
"""Parts that share their checks with predict."""
OWN: dict[tuple[str, ...], Callable[[DictConfig], list[str]]] = {
    ("generation",): _generation_faults,
    ("objective",): _built_faults("objective"),
    ("likelihood",): _built_faults("likelihood"),
    ("reward",): _own_faults("reward"),
    ("optimizer",): _own_faults("optimizer"),
    ("lora", "model", "decoder", "rollout_dtype"): _trained_faults,
    LOOP_KEYS: _loop_faults,
}
"""Each check, keyed by the config parts that it reads."""
