"""The schemas behind `conf/bench.yaml` and `conf/workload/`, and the checks of their values. Knows no torch.

The other schemas are in `dlm.config.schemas` and `dlm.training.config`.
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
"""Prompt lengths like those of GSM8K, mean 107: sixteen evenly spaced quantiles, the shortest and the longest included,
of the 1,319 test questions (words, digits and signs counted as tokens) plus 45 tokens of chat template and instruction;
in shuffled order."""


def prompt_lengths(batch: int, prompt_length: int) -> list[int]:
    """`prompt_length` for a single canvas; for more, GSM8K-like lengths, stretched where `prompt_length` is not 128."""
    if batch == 1:
        return [prompt_length]
    return [max(1, GSM8K_LENGTHS[i % len(GSM8K_LENGTHS)] * prompt_length // 128) for i in range(batch)]


@dataclass
class SpeedConfig:
    """What is decoded and timed, with random weights.

    Attributes:
        size: shape of the random model, a key of `dlm.models.sizes.SIZES`.
        sizes: shapes for single engines, where theirs is not `size`.
        engines, samplers, dtypes, batches, prompt_lengths, gen_lengths: one row of the table for each combination.
            Prompts have the length named when the batch is 1; larger batches take GSM8K-like lengths around it.
        block_length: of each canvas.
        steps_per_block: forwards in which a block is decoded, by engine.
        blocks: how many blocks of each canvas are decoded.
        reference: also time the plain loop, where there is one for the engine and the model.
        peak_goal: share of the matmul peak that each row should reach; rows below are named. None: no goal.
        repetitions, row_seconds: rounds of a row at most; after `row_seconds` no further one begins.
        deterministic: as `decoder.deterministic`; with false, and `MKL_CBWR=AUTO` in the environment, bits may depend
            on the batch, which shows what it costs that they do not.
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
        """The shape that an engine runs on."""
        return self.sizes.get(engine, self.size)

    def faults(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        for engine, size in {"size": self.size, **{f"sizes.{one}": size for one, size in self.sizes.items()}}.items():
            if size not in SIZES:
                found.append(f"workload.{engine}={size} must be one of {', '.join(SIZES)}")
        unknown = sorted(self.sizes.keys() - set(PACED_ENGINES))
        if unknown:
            found.append(f"workload.sizes names {', '.join(unknown)}, which are not among {', '.join(PACED_ENGINES)}")
        for name, known in (("engines", PACED_ENGINES), ("samplers", PACED_SAMPLERS), ("dtypes", DTYPES)):
            given = getattr(self, name)
            if not given or any(value not in known for value in given):
                found.append(f"workload.{name}={list(given)} must be a list out of {', '.join(known)}")
        for name in ("batches", "prompt_lengths", "gen_lengths"):
            given = getattr(self, name)
            if not given or min(given) < 1:
                found.append(f"workload.{name}={list(given)} must be a list of whole numbers from 1")
        for name in ("block_length", "blocks", "repetitions"):
            if getattr(self, name) < 1:
                found.append(f"workload.{name}={getattr(self, name)} must be at least 1")
        if self.peak_goal is not None and not 0 < self.peak_goal <= 1:
            found.append(f"workload.peak_goal={self.peak_goal} must be above 0 and at most 1")
        return found or self._misfits()

    def _misfits(self) -> list[str]:
        """What does not go together among values that are each in range."""
        found = []
        for gen_length in self.gen_lengths:
            if gen_length % self.block_length or self.blocks * self.block_length > gen_length:
                found.append(
                    f"workload.gen_lengths={gen_length} must hold whole blocks of block_length={self.block_length}, "
                    f"at least blocks={self.blocks} of them"
                )
        longest = max(max(prompt_lengths(batch, one)) for batch in self.batches for one in self.prompt_lengths)
        longest = -(-(longest + max(self.gen_lengths)) // self.block_length) * self.block_length
        for size in {self.size_of(engine): None for engine in self.engines}:
            if longest > SIZES[size].max_positions:
                found.append(
                    f"workload.prompt_lengths and gen_lengths make a canvas of {longest} positions, size {size} has "
                    f"{SIZES[size].max_positions}; shorten one of them"
                )
        for engine in self.engines:
            config, kind = SIZES[self.size_of(engine)], ENGINES[engine]()
            if kind.attention != config.attention or (config.shifted and not kind.takes_shifted):
                model = f"{'shifted ' * config.shifted}{config.attention}"
                found.append(
                    f"workload.engines: {engine} does not run size {self.size_of(engine)}, whose attention is {model}; "
                    f"workload.sizes.{engine}= gives it a shape of its own"
                )
            untracked = [name for name in self.samplers if SAMPLERS[name]().track and kind.smoothing is not None]
            if untracked:
                found.append(f"workload.samplers: {untracked[0]} is not defined with the inputs of engine {engine}")
            steps = self.steps_per_block.get(engine, 0)
            if not 1 <= steps <= self.block_length:
                found.append(f"workload.steps_per_block.{engine}={steps} must be 1..{self.block_length}")
        return found


@dataclass
class QualityConfig:
    """The demo checkpoint's exact match and forwards by algorithm, on its held-out test set.

    Attributes:
        algorithms: names in `dlm.decoding.algorithms.ALGORITHMS`; None takes all that the family can run.
        per_family: test prompts of each of the demo's families, half as many of a memorised one; None takes all.
    """

    algorithms: list[str] | None = None
    per_family: int | None = None

    def faults(self) -> list[str]:
        """Everything that is wrong with the values."""
        from dlm.bench.variants import runnable

        found = []
        wrong = [name for name in self.algorithms or [] if name not in runnable()]
        if wrong or self.algorithms == []:
            found.append(f"workload.algorithms={self.algorithms} must be a list out of {', '.join(runnable())}")
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
    """Make the schemas known to Hydra."""
    store = ConfigStore.instance()
    store.store(group="schema", name="bench", node=BenchConfig)
    store.store(group="schema/workload", name="speed", node=SpeedConfig)
    store.store(group="schema/workload", name="quality", node=QualityConfig)
    store.store(group="schema/workload", name="load", node=LoadConfig)
    store.store(group="schema", name="compare", node=CompareConfig)


def to_bench(config: DictConfig) -> BenchConfig:
    """The checked values; raises `ConfigError` with all faults at once."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError("; ".join(f"{key} is not set" for key in missing))
    bench = cast(BenchConfig, OmegaConf.to_object(config))
    faults = [f"device={bench.device} must be one of {', '.join(DEVICES)}"] if bench.device not in DEVICES else []
    if bench.clock not in CLOCKS:
        faults.append(f"clock={bench.clock} must be one of {', '.join(CLOCKS)}")
    if bench.json is not None and not Path(bench.json).absolute().parent.is_dir():
        faults.append(f"json={bench.json} lies in a folder that does not exist")
    if isinstance(bench.workload, QualityConfig):
        timing = {"profile": bench.profile, "clock": bench.clock != "wall"}
        faults += [f"{name}= is for workloads that are timed; leave it out" for name, given in timing.items() if given]
    faults += _target_faults(bench) + bench.workload.faults()
    if faults:
        raise ConfigError("; ".join(faults))
    return bench


def _target_faults(bench: BenchConfig) -> list[str]:
    """What does not go with the target."""
    loaded = isinstance(bench.workload, LoadConfig)
    if bench.target == "decoder":
        given = {"url": bench.url is not None, "compare": bench.compare is not None}
        faults = [f"{name}= goes with target=server; write that too" for name, one in given.items() if one]
        return faults + (["this workload loads a server; write target=server too"] if loaded else [])
    given = {"device": bench.device != "auto", "clock": bench.clock != "wall", "profile": bench.profile}
    faults = [f"{name}= is for target=decoder; leave it out" for name, one in given.items() if one]
    if not loaded:
        faults.append("this workload is for target=decoder; those of target=server: load, batching, load_smoke")
    if (bench.url is None) == (bench.compare is None):
        faults.append("target=server needs the url= of a server (or a list of them), or compare=; give one of the two")
    if bench.compare is not None:
        faults += bench.compare.faults()
    urls = bench.urls()
    if not all(isinstance(one, str) and one.startswith(("http://", "https://")) for one in urls):
        faults.append(f"url={bench.url} must be http://host:port, or a list of such")
    if len(set(urls)) != len(urls):
        faults.append(f"url={bench.url} names a server twice")
    return faults
