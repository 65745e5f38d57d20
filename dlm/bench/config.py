"""Schemas of `conf/bench.yaml` and `conf/workload/`, with their value checks. Independent of torch.

Other schemas are in `dlm.config.schemas` and `dlm.training.config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from dlm.bench.load.config import CompareConfig, LoadConfig
from dlm.bench.paced import PACED_ENGINES, PACED_SAMPLERS
from dlm.decoding.engines import ENGINES
from dlm.decoding.samplers import SAMPLERS
from dlm.errors import ConfigError
from dlm.models.sizes import SIZES

DTYPES = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
CLOCKS = ("wall", "cpu")


GSM8K_LENGTHS = (109, 139, 91, 77, 104, 81, 84, 112, 126, 97, 101, 87, 66, 94, 232, 118)
"""GSM8K-like prompt lengths, mean 107: sixteen evenly spaced quantiles, including the shortest and the longest, of the
1,319 test questions (words, digits and signs counted as tokens) plus 45 tokens of chat template and instruction;
shuffled."""


def prompt_lengths(batch: int, prompt_length: int) -> list[int]:
    """`[prompt_length]` for a single canvas; for larger batches GSM8K-like lengths, scaled by `prompt_length` / 128."""
    if batch == 1:
        return [prompt_length]
    return [max(1, GSM8K_LENGTHS[i % len(GSM8K_LENGTHS)] * prompt_length // 128) for i in range(batch)]


@dataclass
class SpeedConfig:
    """A timed workload on random weights.

    Attributes:
        size: shape of the random model, a key of `dlm.models.sizes.SIZES`.
        sizes: overrides of `size`, by engine.
        engines, samplers, dtypes, batches, prompt_lengths, gen_lengths: one table row for each combination. At batch 1
            the prompt has exactly this length; larger batches take GSM8K-like lengths around it.
        block_length: of each canvas.
        steps_per_block: forwards per block, by engine.
        blocks: blocks decoded per canvas.
        reference: also time the plain loop, if the engine and the model have one.
        peak_goal: share of the matmul peak that each row should reach; rows below it are listed. None: no goal.
        repetitions, row_seconds: at most `repetitions` rounds per row; no round starts after `row_seconds`.
        deterministic: as `decoder.deterministic`; false, with `MKL_CBWR=AUTO` in the environment, lets bits depend on
            the batch, which shows what batch invariance costs.
        seed: of the weights and prompts.
    """

    size: str = MISSING
    sizes: dict[str, str] = field(default_factory=dict)
    engines: list[str] = MISSING
    samplers: list[str] = field(default_factory=lambda: ["fixed"])
    dtypes: list[str] = MISSING
    batches: list[int] = MISSING
    prompt_lengths: list[int] = field(default_factory=lambda: [128])
    gen_lengths: list[int] = field(default_factory=lambda: [128])
    block_length: int = 32
    steps_per_block: dict[str, int] = field(default_factory=dict)
    blocks: int = 1
    reference: bool = True
    peak_goal: float | None = None
    repetitions: int = 5
    row_seconds: float = 30.0
    deterministic: bool | None = None
    seed: int = 0

    def size_of(self, engine: str) -> str:
        """The model size for an engine."""
        return self.sizes.get(engine, self.size)

    def faults(self) -> list[str]:
        """A message for every invalid value."""
        found = []
        for engine, size in {"size": self.size, **{f"sizes.{one}": size for one, size in self.sizes.items()}}.items():
            if size not in SIZES:
                found.append(f"workload.{engine}={size} must be one of {', '.join(SIZES)}")
        unknown = sorted(self.sizes.keys() - set(PACED_ENGINES))
        if unknown:
            found.append(f"workload.sizes: {', '.join(unknown)} must be among {', '.join(PACED_ENGINES)}")
        for name, known in (("engines", PACED_ENGINES), ("samplers", PACED_SAMPLERS), ("dtypes", DTYPES)):
            given = getattr(self, name)
            if not given or any(value not in known for value in given):
                found.append(f"workload.{name}={list(given)} must be a list of values from {', '.join(known)}")
        for name in ("batches", "prompt_lengths", "gen_lengths"):
            given = getattr(self, name)
            if not given or min(given) < 1:
                found.append(f"workload.{name}={list(given)} must be a list of integers, each at least 1")
        for name in ("block_length", "blocks", "repetitions"):
            if getattr(self, name) < 1:
                found.append(f"workload.{name}={getattr(self, name)} must be at least 1")
        if self.peak_goal is not None and not 0 < self.peak_goal <= 1:
            found.append(f"workload.peak_goal={self.peak_goal} must be above 0 and at most 1")
        return found or self._misfits()

    def _misfits(self) -> list[str]:
        """Conflicts between values that are each in range."""
        found = []
        for gen_length in self.gen_lengths:
            if gen_length % self.block_length or self.blocks * self.block_length > gen_length:
                found.append(
                    f"workload.gen_lengths={gen_length} must be whole blocks of block_length={self.block_length}, "
                    f"at least blocks={self.blocks} of them"
                )
        longest = max(max(prompt_lengths(batch, one)) for batch in self.batches for one in self.prompt_lengths)
        longest = -(-(longest + max(self.gen_lengths)) // self.block_length) * self.block_length
        for size in {self.size_of(engine): None for engine in self.engines}:
            if longest > SIZES[size].max_positions:
                found.append(
                    f"workload.prompt_lengths and gen_lengths make a canvas of {longest} positions, but size {size} "
                    f"has {SIZES[size].max_positions}; shorten one of them"
                )
        for engine in self.engines:
            config, kind = SIZES[self.size_of(engine)], ENGINES[engine]()
            if kind.attention != config.attention or (config.shifted and not kind.takes_shifted):
                model = f"{'shifted ' * config.shifted}{config.attention}"
                found.append(
                    f"workload.engines: {engine} does not run size {self.size_of(engine)}, whose attention is {model}; "
                    f"set workload.sizes.{engine}= to another size"
                )
            untracked = [name for name in self.samplers if SAMPLERS[name]().track and kind.smoothing is not None]
            if untracked:
                found.append(f"workload.samplers: {untracked[0]} is not defined for the inputs of engine {engine}")
            steps = self.steps_per_block.get(engine, 0)
            if not 1 <= steps <= self.block_length:
                found.append(f"workload.steps_per_block.{engine}={steps} must be 1..{self.block_length}")
        return found


@dataclass
class QualityConfig:
    """The demo checkpoint's exact match and forwards by algorithm, on its held-out test set.

    Attributes:
        algorithms: names in `dlm.decoding.algorithms.ALGORITHMS`; None takes all that the family can run.
        per_family: test prompts per demo family, half as many for a memorised one; None takes all.
    """

    algorithms: list[str] | None = None
    per_family: int | None = None

    def faults(self) -> list[str]:
        """A message for every invalid value."""
        from dlm.bench.variants import runnable

        found = []
        wrong = [name for name in self.algorithms or [] if name not in runnable()]
        if wrong or self.algorithms == []:
            found.append(f"workload.algorithms={self.algorithms} must be a list of values from {', '.join(runnable())}")
        if self.per_family is not None and self.per_family < 2:
            found.append(f"workload.per_family={self.per_family} must be at least 2, or null for all")
        return found


@dataclass
class BenchConfig:
    """`conf/bench.yaml`; `workload` is a `SpeedConfig` or a `QualityConfig`, with `target=server` a `LoadConfig`."""

    workload: Any = MISSING
    target: str = "decoder"
    url: Any = None
    compare: CompareConfig | None = None
    device: str = "auto"
    clock: str = "wall"
    profile: bool = False
    json: str | None = None

    def urls(self) -> list[Any]:
        """`url` as a list."""
        return [] if self.url is None else list(self.url) if isinstance(self.url, list) else [self.url]


def register() -> None:
    """Register the schemas with Hydra."""
    store = ConfigStore.instance()
    store.store(group="schema", name="bench", node=BenchConfig)
    store.store(group="schema/workload", name="speed", node=SpeedConfig)
    store.store(group="schema/workload", name="quality", node=QualityConfig)
    store.store(group="schema/workload", name="load", node=LoadConfig)
    store.store(group="schema", name="compare", node=CompareConfig)


def to_bench(config: DictConfig) -> BenchConfig:
    """Return the checked config; raises `ConfigError` listing every fault."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError("; ".join(f"{key} is not set" for key in missing))
    bench = cast(BenchConfig, OmegaConf.to_object(config))
    faults = [f"device={bench.device} must be one of {', '.join(DEVICES)}"] if bench.device not in DEVICES else []
    if bench.clock not in CLOCKS:
        faults.append(f"clock={bench.clock} must be one of {', '.join(CLOCKS)}")
    if bench.json is not None and not Path(bench.json).absolute().parent.is_dir():
        faults.append(f"json={bench.json}: its folder does not exist")
    if isinstance(bench.workload, QualityConfig):
        timing = {"profile": bench.profile, "clock": bench.clock != "wall"}
        faults += [f"{name}= only applies to timed workloads; leave it out" for name, given in timing.items() if given]
    faults += _target_faults(bench) + bench.workload.faults()
    if faults:
        raise ConfigError("; ".join(faults))
    return bench


def _target_faults(bench: BenchConfig) -> list[str]:
    """Values that do not fit the target."""
    loaded = isinstance(bench.workload, LoadConfig)
    if bench.target == "decoder":
        given = {"url": bench.url is not None, "compare": bench.compare is not None}
        faults = [f"{name}= needs target=server; set it too" for name, one in given.items() if one]
        return faults + (["this workload loads a server; set target=server too"] if loaded else [])
    given = {"device": bench.device != "auto", "clock": bench.clock != "wall", "profile": bench.profile}
    faults = [f"{name}= is for target=decoder; leave it out" for name, one in given.items() if one]
    if not loaded:
        faults.append("this workload is for target=decoder; for target=server use load, batching or load_smoke")
    if (bench.url is None) == (bench.compare is None):
        faults.append("target=server needs either url=, a server or a list of them, or compare=; set one of the two")
    if bench.compare is not None:
        faults += bench.compare.faults()
    urls = bench.urls()
    if not all(isinstance(one, str) and one.startswith(("http://", "https://")) for one in urls):
        faults.append(f"url={bench.url} must be http://host:port, or a list of those")
    if len(set(urls)) != len(urls):
        faults.append(f"url={bench.url} names a server twice")
    return faults
