"""Which stored tensor is which of the family's: wrappers' prefixes, an optimizer beside, foreign and missing names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor

from dlm._quoting import named, quoted
from dlm.errors import CheckpointError
from dlm.models.backbone import Backbone, BackboneConfig
from dlm.models.families import Family
from dlm.models.io.sources import NameSource, TensorSource

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts that compiling, sharding and checkpointing put anywhere inside a name."""

PLAIN_PREFIXES = frozenset({"model", "module", "state_dict", "model_state_dict", "app", "weights"})
"""Parts of a prefix that say no more than `the model`; others, such as `ema`, may be another copy of it."""

TRAINING_STATE = frozenset(
    {"optim", "optimizer", "optimizers", "optimizer_state_dict", "lr_scheduler", "scheduler", "train_state", "trainer",
     "dataloader", "rng", "rng_state", "step", "epoch", "state", "param_groups", "loops", "callbacks"}
)  # fmt: skip
"""First parts of names that belong to the trainer."""

OPTIMIZER_SLOTS = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "master_param", "step"})
"""Last parts of names that belong to an optimizer."""

READABLE = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
"""Dtypes of weights; others are codes that mean nothing without their scales."""

FEW_TENSORS = 1000
"""A model of this many tensors at most is made without weights, only to name those that are missing."""

MAX_NAME = 1024
"""Characters of a tensor's name."""


@dataclass(frozen=True)
class Match:
    """The tensors of a source that are the model's.

    Attributes:
        stored: the family's name -> the source's name, in the source's order.
        tied: the source's names of copies of a tied weight.
        prefix: what stands in the source before the names.
    """

    stored: dict[str, str]
    tied: tuple[str, ...]
    prefix: str


def match(source: TensorSource, family: Family, config: BackboneConfig, prefix: str | None = None) -> Match:
    """Find the model's tensors and check their names, shapes and files before any is read.

    The exception are copies of a tied weight, which are compared with it.

    Raises `CheckpointError` that lists missing and foreign names, or names the first tensor of a wrong shape.
    """
    _check_count(source, family, config)
    shapes = family_shapes(family, config)
    found = find_names(source, family, config, shapes, prefix)
    for name, stored in found.stored.items():
        if source.dtype(stored) not in READABLE:
            dtype = str(source.dtype(stored)).removeprefix("torch.")
            raise CheckpointError(
                f"{source.label}: {named(stored)} is stored as {dtype}; quantised weights are not read: convert the "
                "model to bfloat16 or float32"
            )
        if source.shape(stored) != shapes[name]:
            raise CheckpointError(
                f"{source.label}: {named(stored)} has shape {list(source.shape(stored))}, config.json makes it "
                f"{list(shapes[name])}"
            )
    source.verify((*found.stored.values(), *found.tied))
    _check_ties(source, found, family, config)
    return found


def _check_count(source: NameSource, family: Family, config: BackboneConfig) -> None:
    """Refuse a config of many more tensors than there are, before anything is made for each of them."""
    layers, first = config.num_layers, config.num_layers if config.experts is None else config.experts.first_layer
    dense = min(layers, first)

    def count(one: BackboneConfig) -> int:
        return sum(map(len, family.weights(one).values()))

    outside = count(replace(config, num_layers=0))
    needed = outside + dense * (count(replace(config, num_layers=1, experts=None)) - outside)
    if config.experts is not None:
        alone = replace(config, num_layers=1, experts=replace(config.experts, first_layer=0))
        needed += (layers - dense) * (count(alone) - outside)
    stored = len(source.names())
    if needed > max(2 * stored, FEW_TENSORS):
        raise CheckpointError(
            f"{source.label} holds {stored} tensors, and the {family.name} model of {layers} layers that config.json "
            f"describes has {needed}: they are not of one model"
        )


def _check_ties(source: TensorSource, found: Match, family: Family, config: BackboneConfig) -> None:
    """A tied weight that is stored twice must be the same twice."""
    embedding = found.stored[family.weights(config)["embedding.weight"][0].name]
    for copy in found.tied:
        same = source.shape(copy) == source.shape(embedding)
        if not same or not torch.equal(source.read(copy), source.read(embedding)):
            raise CheckpointError(
                f"{source.label}: config.json ties {named(copy)} to {named(embedding)}, and the two differ; was the "
                "model trained with untied embeddings?"
            )


def family_shapes(family: Family, config: BackboneConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a checkpoint of this family."""
    with torch.device("meta"):
        backbone = Backbone(config)
    return {name: tuple(place.shape) for name, place in family_places(family, backbone).items()}


def family_places(family: Family, backbone: Backbone) -> dict[str, Tensor]:
    """For each tensor of a checkpoint of this family the view of the backbone's parameters that holds it."""
    parameters = dict(backbone.named_parameters())
    return {
        part.name: part.place(parameters[name])
        for name, parts in family.weights(backbone.config).items()
        for part in parts
    }


def find_names(
    source: NameSource, family: Family, config: BackboneConfig, wanted: Collection[str], prefix: str | None
) -> Match:
    """The match of names alone; `prefix` chooses where several sets of weights fit."""
    clean = _without_wrappers(source)
    head = common_head(wanted)
    short = {name.removeprefix(head) for name in wanted}
    votes = _prefixes(clean, short)
    fitting = sorted(found for found, count in votes.items() if count == len(short))
    if prefix is not None:
        chosen = prefix
    elif fitting:
        chosen = _choose(fitting, head, source)
    else:
        chosen = max(votes, key=lambda found: (votes[found], found == head, -len(found)), default=head)
    mapping = {chosen + name.removeprefix(head): name for name in wanted}
    root = chosen.removesuffix(head) if chosen.endswith(head) else chosen
    optional = {root + name for name in _tied_names(family, config)}
    missing = sorted(name for name in mapping if name not in clean)
    foreign = sorted(
        clean[name]
        for name in clean
        if name.startswith(root)
        and name not in mapping
        and name not in optional
        and not _is_training_state(name.removeprefix(root))
    )
    if missing or foreign:
        under = f" under the prefix {quoted(chosen)}" if chosen != head else ""
        faults = ", ".join(
            f"{len(names)} {what} ({', '.join(map(named, names[:3]))})"
            for what, names in (("missing", missing), ("unknown", foreign))
            if names
        )
        raise CheckpointError(f"{source.label}: the tensors{under} are not those of the {family.name} family: {faults}")
    return Match(
        stored={mapping[name]: clean[name] for name in clean if name in mapping},
        tied=tuple(clean[name] for name in clean if name in optional),
        prefix=chosen,
    )


def _without_wrappers(source: NameSource) -> dict[str, str]:
    """Name without wrappers -> stored name."""
    clean: dict[str, str] = {}
    for stored in source.names():
        if len(stored) > MAX_NAME:
            raise CheckpointError(
                f"{source.label}: {named(stored)} has {len(stored)} characters; no weight is called so"
            )
        name = ".".join(part for part in stored.split(".") if part not in WRAPPERS)
        if name in clean:
            raise CheckpointError(
                f"{source.label}: {named(clean[name])} and {named(stored)} are one name without their wrappers"
            )
        clean[name] = stored
    return clean


def common_head(names: Iterable[str]) -> str:
    """The parts with which all names begin, with the dot behind them; the last part of a name never counts."""
    heads = [name.split(".")[:-1] for name in names]
    common = takewhile(lambda pair: pair[0] == pair[1], zip(min(heads), max(heads), strict=False))
    return "".join(f"{part}." for part, _ in common)


def _prefixes(names: Iterable[str], short: Collection[str]) -> Counter[str]:
    """How many of the `short` names stand behind each prefix."""
    votes: Counter[str] = Counter()
    deepest = max((name.count(".") + 1 for name in short), default=0)
    for name in names:
        parts = name.split(".")
        for start in range(max(0, len(parts) - deepest), len(parts)):
            if ".".join(parts[start:]) in short:
                votes["".join(f"{part}." for part in parts[:start])] += 1
    return votes


def _choose(fitting: Sequence[str], head: str, source: NameSource) -> str:
    plain_parts = PLAIN_PREFIXES | set(head.split("."))
    plain = [prefix for prefix in fitting if set(prefix.split(".")) <= plain_parts | {""}]
    choices = plain or fitting
    if len(choices) > 1:
        raise CheckpointError(
            f"{source.label} holds several sets of weights that fit, behind {', '.join(map(quoted, choices[:5]))}; "
            "choose one with model.dcp_prefix="
        )
    return choices[0]


def _tied_names(family: Family, config: BackboneConfig) -> set[str]:
    """Names under which a tied weight may be stored a second time."""
    if not config.tie_embeddings:
        return set()
    tied, untied = family.weights(config), family.weights(replace(config, tie_embeddings=False))
    return {part.name for name, parts in untied.items() if name not in tied for part in parts}


def _is_training_state(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in TRAINING_STATE or parts[-1] in OPTIMIZER_SLOTS
