"""The keys of a config.json: which values each may have, and everything that is wrong with a file, told at once.

Knows no family. A family declares its keys in a `Schema`; nothing is built from a file that does not fit it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dlm._quoting import quoted
from dlm.errors import CheckpointError

MOST_FAULTS = 12
"""Faults of a file that are listed; the others are counted."""

MOST_KEYS = 1000
"""Keys of an object in a config.json; released files have about fifty."""

MOST_ITEMS = 4096
"""Items of a list in a config.json, such as one for each layer."""

Values = Mapping[str, Any]
"""What a config.json holds, by key: checked, with defaults in the place of what is left out."""


class Kind(ABC):
    """Which values a key may have."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """The values, in words that go on from `must be`."""

    @abstractmethod
    def accepts(self, value: object) -> bool:
        """Whether the key may have this value, which is not null."""

    def faults(self, name: str, value: object) -> list[str]:
        """What is wrong with the value of the key `name`."""
        return [] if self.accepts(value) else [f"{name}={quoted(value)} must be {self.expected}"]

    def convert(self, value: Any) -> Any:
        """An accepted value as the model's code takes it."""
        return value


@dataclass(frozen=True)
class Integer(Kind):
    """A whole number within bounds. True, 4.0 and "4" are none: no program writes a size so."""

    low: int
    high: int

    @property
    def expected(self) -> str:
        return f"an integer from {self.low} to {self.high}"

    def accepts(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Real(Kind):
    """A finite number within bounds, written with or without a point."""

    low: float
    high: float

    @property
    def expected(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"

    def accepts(self, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def convert(self, value: Any) -> float:
        return float(value)


@dataclass(frozen=True)
class Boolean(Kind):
    """True or false, and neither 0 nor 1."""

    @property
    def expected(self) -> str:
        return "true or false"

    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Text(Kind):
    """A short string."""

    longest: int = 64

    @property
    def expected(self) -> str:
        return f"a string of at most {self.longest} characters"

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and len(value) <= self.longest


class Only(Kind):
    """The values that the model code here computes with; the first is the one that is written."""

    def __init__(self, *values: object) -> None:
        self.values = values

    @property
    def expected(self) -> str:
        return " or ".join(map(repr, self.values)) + ", which is all that is supported"

    def accepts(self, value: object) -> bool:
        return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.values)


@dataclass(frozen=True)
class OneOrMany(Kind):
    """A value of a kind, or a list of such values."""

    kind: Kind

    @property
    def expected(self) -> str:
        return f"{self.kind.expected}, or a list of such values"

    def accepts(self, value: object) -> bool:
        if not isinstance(value, list):
            return self.kind.accepts(value)
        return 0 < len(value) <= MOST_ITEMS and all(map(self.kind.accepts, value))

    def convert(self, value: Any) -> tuple[Any, ...]:
        return tuple(map(self.kind.convert, value if isinstance(value, list) else [value]))


@dataclass(frozen=True)
class Key:
    """One key that is read.

    Attributes:
        name: in config.json.
        kind: the values it may have.
        meaning: for messages; empty where the name says it.
        optional: whether it may be left out; null then is the same as leaving it out.
        nullable: whether it may be null though it must be there.
        default: its value where it is left out or null.
    """

    name: str
    kind: Kind
    meaning: str = ""
    optional: bool = False
    nullable: bool = False
    default: Any = None


def fixed(name: str, *values: object, optional: bool = True) -> Key:
    """A key that changes the computation, with the values that the model code here computes with."""
    return Key(name, Only(*values), optional=optional, nullable=None in values)


def written(keys: Iterable[Key]) -> dict[str, Any]:
    """The keys made by `fixed` among these, as they are written."""
    return {key.name: key.kind.values[0] for key in keys if isinstance(key.kind, Only)}


@dataclass(frozen=True, eq=False)
class Schema:
    """The keys that a JSON object may have; any other is refused, since it may change the computation.

    Attributes:
        keys: those that are read.
        ignored: those that change nothing here, whatever their values.
        unsupported: those that would change the computation unless they are null, and why they are refused.
        owner: whose keys they are, for messages.
    """

    keys: tuple[Key, ...]
    ignored: frozenset[str] = frozenset()
    unsupported: Mapping[str, str] | None = None
    owner: str = "these models"

    def read(self, config: Mapping[str, Any], path: str = "") -> tuple[dict[str, Any], list[str]]:
        """The checked values by key, and every fault; `path` stands before the names of a nested object's keys."""
        if len(config) > MOST_KEYS:
            return {}, [
                f"{path.removesuffix('.') or 'the file'} has {len(config)} keys; it must have at most {MOST_KEYS}"
            ]
        values: dict[str, Any] = {}
        missing, faults = [], []
        for key in self.keys:
            value = config.get(key.name)
            if value is not None:
                found = key.kind.faults(path + key.name, value)
                faults += [f"{fault} ({key.meaning})" if key.meaning else fault for fault in found]
                if not found:
                    values[key.name] = key.kind.convert(value)
            elif key.optional or (key.nullable and key.name in config):
                values[key.name] = key.default
            elif key.name in config:
                faults.append(f"{path}{key.name}=null must be {key.kind.expected}")
            else:
                missing.append(path + key.name)
        if missing:
            faults.insert(0, lacking(missing))
        return values, faults + self._foreign(config, path)

    def _foreign(self, config: Mapping[str, Any], path: str) -> list[str]:
        known = self.ignored | {key.name for key in self.keys}
        unsupported = self.unsupported or {}
        faults = []
        for name, value in config.items():
            if name in unsupported and name not in known:
                if value is not None:
                    faults.append(f"{path}{name}={quoted(value)} is not supported: {unsupported[name]}")
            elif name not in known:
                faults.append(
                    f"{path}{quoted(name)}={quoted(value)} is not a key that {self.owner} are known to have; delete it "
                    "if it does not change the computation"
                )
        return faults


@dataclass(frozen=True)
class Relation:
    """What several keys must be to each other.

    Attributes:
        keys: that it reads; it is not looked at where one of them has a fault of its own.
        check: from the values to faults.
    """

    keys: tuple[str, ...]
    check: Callable[[Values], Iterable[str]]


def lacking(names: Iterable[str]) -> str:
    """The fault of a file that leaves keys out."""
    return (
        f"lacks {', '.join(names)}; class defaults differ from the released models, so each must be stated in the file"
    )


def check(
    schema: Schema, relations: Iterable[Relation], config: Mapping[str, Any], file: object, what: str
) -> dict[str, Any]:
    """The values of a config.json; `CheckpointError` names the file, every key that is wrong, and what is expected.

    Args:
        file: what messages call it.
        what: what it should describe.
    """
    values, faults = schema.read(config)
    for relation in relations:
        if all(name in values for name in relation.keys):
            faults += relation.check(values)
    if not faults:
        return values
    rest = len(faults) - MOST_FAULTS
    shown = faults[:MOST_FAULTS] + ([f"and {rest} more"] if rest > 0 else [])
    raise CheckpointError("\n  ".join([f"{file} does not describe {what} that can be loaded:", *shown]))
