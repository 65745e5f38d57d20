"""What a family of checkpoints says of itself, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dlm.models.architecture import BackboneConfig
from dlm.models.families.keys import Relation, Schema, Values, check

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
        other_ids: end a sequence too, where the config names several ends.
    """

    mask_id: int
    eos_id: int | None
    eot_id: int | None = None
    other_ids: tuple[int, ...] = ()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return tuple(dict.fromkeys(i for i in (self.eos_id, *self.other_ids, self.eot_id) if i is not None))

    @property
    def named_eos(self) -> int | list[int] | None:
        """`eos_token_id` as a config.json has it: one id, or a list of several."""
        return self.eos_id if self.eos_id is None or not self.other_ids else [self.eos_id, *self.other_ids]


@dataclass(frozen=True)
class NamedIds:
    """Special ids as a config.json has them; None, or no id, where it is silent and the tokenizer has to say."""

    mask_id: int | None
    eos_ids: tuple[int, ...]


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
        schema: the keys that its config.json may have.
        relations: what these must be to each other.
        build: from their checked values to the architecture.
        write_config: the reverse, for checkpoints that we train.
        weights: for each backbone parameter the checkpoint tensors it is made of.
        mask_text, eos_text: added tokens that stand for ids that the config does not name.
        block_length: native block of `block_causal` models; that of a checkpoint is `BackboneConfig.block_length`.
    """

    name: str
    architectures: tuple[str, ...]
    default_algorithm: str
    algorithms: tuple[str, ...]
    turn_end: str | None
    schema: Schema
    relations: tuple[Relation, ...]
    build: Callable[[Values], BackboneConfig]
    write_config: Callable[[BackboneConfig, SpecialTokens], dict[str, Any]]
    weights: Callable[[BackboneConfig], dict[str, list[WeightPart]]]
    mask_text: str | None = None
    eos_text: str | None = None
    block_length: int | None = None

    def read_config(self, config: Mapping[str, Any], file: object = "config.json") -> BackboneConfig:
        """The architecture that a config describes; `CheckpointError` names `file` and every key that does not fit."""
        return self.build(self._values(config, file))

    def read_special(self, config: Mapping[str, Any], file: object = "config.json") -> NamedIds:
        """The mask and end ids that a config names. Raises as `read_config`."""
        values = self._values(config, file)
        return NamedIds(values["mask_token_id"], values["eos_token_id"] or ())

    def _values(self, config: Mapping[str, Any], file: object) -> dict[str, Any]:
        return check(self.schema, self.relations, config, file, f"a {self.name} model")
