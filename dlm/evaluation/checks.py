"""What the schemas cannot see of `conf/evaluate.yaml`, besides what they cannot see of `conf/predict.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from dlm.config.build import instantiate
from dlm.config.checks import CHECKS, check
from dlm.errors import ConfigError
from dlm.evaluation.sandbox.run import Sandbox, reads_are_closed

DECODING = ("generation", "engine", "sampler", "algorithm", "trace")
"""Parts of the configuration without a meaning where nothing is decoded."""
USED = ("generation.seed",)
"""Keys among them that have one nevertheless."""


def check_evaluate(config: DictConfig, overrides: Sequence[str]) -> None:
    """Raise `ConfigError` with every missing value and every fault of `conf/evaluate.yaml`, each with its remedy."""
    check(config, {**CHECKS, **OWN})
    if instantiate(config.task).generates:
        return
    given = [override for override in overrides if _decodes(override)]
    if given:
        raise ConfigError(
            f"task {config.task.name} scores given answers, and nothing is decoded: {', '.join(given)} would have no "
            "effect; leave it out"
        )


def _decodes(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return key.split(".")[0] in DECODING and key not in USED


def _task_faults(config: DictConfig) -> list[str]:
    task, source = instantiate(config.task), instantiate(config.data)
    faults: list[str] = task.faults(source)
    if faults or not task.generates:
        return faults
    if task.judge(Sandbox()).executes and not config.allow_code_execution:
        faults.append(
            f"task {task.name} runs the code that the model writes: in a process that can start no other, reach no "
            f"network, change no file and read {_readable()}. Write allow_code_execution=true if you want that"
        )
    return faults


def _readable() -> str:
    if reads_are_closed():
        return "none but Python's"
    return "every one that you can, secrets among them: this kernel has no Landlock (Linux 5.13 or later)"


def _checking_faults(config: DictConfig) -> list[str]:
    checking, samples, faults = config.checking, config.generation.n, []
    if not checking.k:
        faults.append("checking.k=[]: write [1] for pass@1")
    for k in checking.k:
        if k < 1:
            faults.append(f"checking.k={k}: must be at least 1")
        elif k > samples:
            faults.append(f"checking.k={k}: generation.n={samples} samples are too few; write generation.n={k} or more")
    if not 0 < checking.level < 1:
        faults.append(f"checking.level={checking.level}: must be between 0 and 1, such as 0.95")
    if checking.seconds <= 0:
        faults.append(f"checking.seconds={checking.seconds}: must be above 0")
    if checking.memory_mib < 128:
        faults.append(f"checking.memory_mib={checking.memory_mib}: must be at least 128, which Python takes itself")
    if checking.threads is not None and checking.threads < 1:
        faults.append(f"checking.threads={checking.threads}: must be at least 1, or null for one a processor")
    return faults


def _published_faults(config: DictConfig) -> list[str]:
    published = config.published
    if published.score is None:
        return []
    faults = []
    if not 0 <= published.score <= 100:
        faults.append(f"published.score={published.score}: must be a percentage")
    if published.tolerance < 0:
        faults.append(f"published.tolerance={published.tolerance}: must be at least 0 points")
    if published.source is None:
        faults.append("published.source is not set: say where the score stands")
    return faults


OWN: dict[tuple[str, ...], Callable[[DictConfig], list[str]]] = {
    ("task", "data", "allow_code_execution"): _task_faults,
    ("checking", "generation"): _checking_faults,
    ("published",): _published_faults,
}
"""Each check with the parts of the configuration that it reads."""
