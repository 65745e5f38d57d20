"""What a family of checkpoints says of itself, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dlm.errors import CheckpointError
from dlm.models.architecture import BackboneConfig

BIDIRECTIONAL = (
    "basic", "prefix_cache", "dual_cache", "dinfer_blockwise", "dinfer_hierarchy", "dinfer_credit", "dinfer_vicinity",
    "dinfer_soft", "sparse", "entropy_bound", "klass", "ar", "remask_hierarchy",
)  # fmt: skip
"""Algorithms for unshifted models whose every position attends to every other."""

BLOCK_CAUSAL = ("entropy_bound", "klass", "ar", "dinfer_blockwise", "dinfer_hierarchy", "dinfer_credit")
"""Generic algorithms for models that attend to their own block and those before it."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with a meaning to the decoder.

    Attributes:
        mask_id: an undecided position; never written.
        eos_id: ends a sequence.
        eot_id: ends a turn, where the family has such a token.
    """

    mask_id: int
    eos_id: int | None
    eot_id: int | None = None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return tuple(dict.fromkeys(i for i in (self.eos_id, self.eot_id) if i is not None))


@dataclass(frozen=True)
class NamedIds:
    """Special ids as a config.json has them; None where it is silent and the tokenizer has to say."""

    mask_id: int | None
    eos_id: int | None


@dataclass(frozen=True)
class WeightPart:
    """A piece of a backbone parameter that a checkpoint stores as a tensor of its own.

    Attributes:
        name: of the checkpoint's tensor.
        start, rows: the piece is `[start, start + rows)` of the parameter's first axis.
        index: expert whose weight it is, where the parameter stacks experts along its first axis; the rows are then
            those of its second.
    """

    name: str
    start: int
    rows: int
    index: int | None = None

    def place(self, parameter: Tensor) -> Tensor:
        """The view of `parameter` that holds this part."""
        stacked = parameter if self.index is None else parameter[self.index]
        return stacked[self.start : self.start + self.rows]


@dataclass(frozen=True)
class Family:
    """One family of checkpoints.

    Attributes:
        name: what users call it.
        architectures: the values of the config's `architectures` that it covers.
        default_algorithm: what `algorithm=auto` means.
        algorithms: names of all algorithms that it can run.
        turn_end: text of the token that ends a turn, looked up in the tokenizer's files.
        read_config: checkpoint config to architecture; raises `CheckpointError`.
        write_config: the reverse, for checkpoints that we train.
        read_special: mask and end ids named by the config.
        weights: for each backbone parameter the checkpoint tensors it is made of.
        mask_text, eos_text: added tokens that stand for ids that the config does not name.
        block_length: native block of `block_causal` models; that of a checkpoint is `BackboneConfig.block_length`.
    """

    name: str
    architectures: tuple[str, ...]
    default_algorithm: str
    algorithms: tuple[str, ...]
    turn_end: str | None
    read_config: Callable[[Mapping[str, Any]], BackboneConfig]
    write_config: Callable[[BackboneConfig, SpecialTokens], dict[str, Any]]
    read_special: Callable[[Mapping[str, Any]], NamedIds]
    weights: Callable[[BackboneConfig], dict[str, list[WeightPart]]]
    mask_text: str | None = None
    eos_text: str | None = None
    block_length: int | None = None


def require(config: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raise `CheckpointError` naming every key that the config lacks."""
    missing = [key for key in keys if key not in config]
    if missing:
        raise CheckpointError(
            f"config.json lacks {', '.join(missing)}; class defaults differ from the released models, so each must be "
            "stated in the file"
        )


def refuse(config: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise `CheckpointError` naming every key that is there with a value that is not among those supported."""
    wrong = [
        f"{key}={config[key]!r} (supported: {', '.join(map(repr, values))})"
        for key, values in supported.items()
        if key in config and config[key] not in values
    ]
    if wrong:
        raise CheckpointError(f"config.json asks for what this model code does not have: {'; '.join(wrong)}")
