"""From dataclasses to schemas, and from a checked choice to the object that it names.

Knows neither torch nor Lightning: `_target_` is a name until `instantiate` is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING, DictConfig

PLAIN = (int, float, str, bool)


def mirror(kind: type[Any], **defaults: Any) -> type[Any]:
    """The schema of a dataclass: its fields, with `_target_` naming it.

    Args:
        kind: what is built from it; a field without a default is missing until a user gives it.
        defaults: other defaults than those of `kind`.
    """
    rows: list[Any] = [("_target_", str, field(default=f"{kind.__module__}.{kind.__qualname__}"))]
    hints = get_type_hints(kind)
    for one in fields(kind):
        default = defaults.get(one.name, MISSING if one.default is dataclasses.MISSING else one.default)
        rows.append((one.name, _checked(hints[one.name]), field(default=default)))
    return make_dataclass(kind.__name__, rows)


def _checked(hint: Any) -> Any:
    """The type where omegaconf knows it, else any."""
    return hint if all(part in PLAIN or part is type(None) for part in get_args(hint) or (hint,)) else Any


def optional(name: str, kind: type[Any], without: Sequence[str]) -> type[Any]:
    """A schema of the fields of a dataclass but `without` some; None, their default, is a value that is not given."""
    hints = get_type_hints(kind)
    names = [one.name for one in fields(kind) if one.name not in without]
    return make_dataclass(name, [(one, _checked(hints[one] | None), field(default=None)) for one in names])


def instantiate(node: DictConfig, **extra: Any) -> Any:
    """Build the object that a node's `_target_` names from its other keys and `extra`.

    The only caller of Hydra's `instantiate`, so that a rule about allowed targets has one place to live.
    """
    from hydra.utils import instantiate as build

    return build(node, **extra)
