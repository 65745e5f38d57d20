"""What a rendering may cost, counted in characters that are handled rather than in seconds.

Sizes are of values written out: a list that holds one list twice counts it twice, as its text would, so that a few
lines of a template cannot stand for more than they may write.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

STEP = 64
"""Units for one loop iteration, call, filter or operation, whatever it handles."""

ITEM = 16
"""Units for looking at one item of a list."""

MAX_BITS = 4096
"""Size of an integer."""

_CONTAINERS = (list, tuple, dict, set, frozenset)
_EMPTY: dict[Any, Any] = {}
_VIEWS = (type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items()))


class TemplateLimit(Exception):
    """A template that does more than any chat needs."""


class Budget:
    """The units of one rendering."""

    def __init__(self, units: int) -> None:
        self._whole = self._left = units
        self._sizes: dict[int, tuple[object, int]] = {}  # keeps what it knows alive, so that no id is used twice

    def spend(self, units: int) -> None:
        """Raise `TemplateLimit` where no units are left."""
        self._left -= units
        if self._left < 0:
            raise TemplateLimit(f"it takes more than {self._whole} steps and characters")

    def size(self, value: object) -> int:
        """Characters and numbers of a value written out. Raises `TemplateLimit` where that is more than all units."""
        if isinstance(value, str):
            return len(value) + 1
        if isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise TemplateLimit(f"it makes a number of {value.bit_length()} bits")
            return 1 + value.bit_length() // 8
        if isinstance(value, range):
            return 2 * len(value)
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, _VIEWS):
            return self._sum(value)
        if not isinstance(value, _CONTAINERS):
            return 8
        size = self._sum(value.items() if isinstance(value, dict) else value)
        self._sizes[id(value)] = value, size
        return size

    def _sum(self, values: Iterable[Any]) -> int:
        total = 1
        for value in values:
            self.spend(ITEM)
            total += self.size(value)
        if total > self._whole:
            raise TemplateLimit(f"it makes a value of more than {self._whole} characters")
        return total

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """The items of a lazy value."""
        found = []
        for value in values:
            self.spend(STEP)
            found.append(value)
        return found
