"""Values as JSON, so that one process can take them from another that it does not trust.

Numbers, texts, collections and a few more types of the standard library are copied, subclasses as their base.
Everything else is an object that stays where it is, and is told by a number. Lists, dicts and other values that can be
changed stand in a table of the message, so that they are one object on the other side too, and changes come back.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

SMALL = 2**63
"""Whole numbers below are written in decimals; larger ones in hexadecimals, which take time in proportion."""

MADE: dict[tuple[str, str], Callable[[Any], tuple[Any, ...]]] = {
    ("fractions", "Fraction"): lambda value: (value.numerator, value.denominator),
    ("decimal", "Decimal"): lambda value: (str(value),),
    ("datetime", "date"): lambda value: (value.year, value.month, value.day),
    ("datetime", "time"): lambda value: (value.hour, value.minute, value.second, value.microsecond),
    ("datetime", "timedelta"): lambda value: (value.days, value.seconds, value.microseconds),
    ("datetime", "datetime"): lambda value: (
        *(value.year, value.month, value.day, value.hour, value.minute, value.second),
        value.microsecond,
    ),
}
"""Types that are copied by what they are made of; module and name, and how to take one apart."""

CHANGEABLE: dict[str, type[Any]] = {"list": list, "dict": dict, "set": set, "bytearray": bytearray, "deque": deque}


class Packer:
    """Packs the values of one message.

    Args:
        export: gives the place of an object that stays here.
        objects: what the other side knows already, in its order.
    """

    def __init__(self, export: Callable[[Any], list[Any]], objects: Iterable[Any] = ()) -> None:
        self.objects = list(objects)
        self._places = {id(value): place for place, value in enumerate(self.objects)}
        self._export = export

    def pack(self, value: Any) -> Any:
        """A value as JSON knows it; of one that can be changed its place in `contents`."""
        kind = type(value)
        if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            return self.pack(value.item())
        if value is None or isinstance(value, bool | str | float):
            return value
        if isinstance(value, int):
            return value if abs(value) < SMALL else ["int", hex(value)]
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if isinstance(value, bytes):
            return ["bytes", value.hex()]
        if isinstance(value, tuple | frozenset):
            return ["tuple" if isinstance(value, tuple) else "frozenset", [self.pack(one) for one in value]]
        if isinstance(value, range):
            return ["range", [self.pack(one) for one in (value.start, value.stop, value.step)]]
        if isinstance(value, list | dict | set | bytearray | deque):
            return ["at", self._place(value)]
        if isinstance(value, type({}.keys())):
            return ["keys", self.pack(dict.fromkeys(value))]
        if isinstance(value, type({}.items())):
            return ["items", self.pack(dict(value))]
        parts = MADE.get((kind.__module__, kind.__qualname__))
        if parts is not None and getattr(value, "tzinfo", None) is None:
            return ["made", kind.__module__, kind.__qualname__, [self.pack(one) for one in parts(value)]]
        return self._export(value)

    def contents(self) -> list[Any]:
        """What is in each of the values that can be changed, those in them included."""
        return [self._content(value) for value in self.objects]  # which grows meanwhile

    def _place(self, value: Any) -> int:
        place = self._places.setdefault(id(value), len(self.objects))
        if place == len(self.objects):
            self.objects.append(value)
        return place

    def _content(self, value: Any) -> list[Any]:
        if isinstance(value, bytearray):
            return ["bytearray", value.hex()]
        if isinstance(value, dict):
            return ["dict", [[self.pack(key), self.pack(one)] for key, one in value.items()]]
        kind = next(name for name, base in CHANGEABLE.items() if isinstance(value, base))
        inside = [self.pack(one) for one in value]
        return [kind, inside, value.maxlen] if isinstance(value, deque) else [kind, inside]


class Unpacker:
    """Unpacks the values of one message.

    Args:
        resolve: finds or stands in for the object at a place that `export` gave.
        contents: those of the message; None where nothing has changed.
        objects: what this side knows of them already; brought up to date.

    Raises:
        Exception: of any kind, where the message is not as `Packer` makes it.
    """

    def __init__(self, resolve: Callable[[str, int], Any], contents: list[Any], objects: Iterable[Any] = ()) -> None:
        self._resolve = resolve
        self.objects = list(objects)
        self.objects += [_empty(content) for content in contents[len(self.objects) :]]
        for value, content in zip(self.objects, contents, strict=True):
            if content is not None:
                self._fill(value, content)

    def unpack(self, packed: Any) -> Any:
        """The value that was packed."""
        if not isinstance(packed, list):
            return packed
        kind, *rest = packed
        if kind == "int":
            return int(rest[0], 16)
        if kind == "complex":
            return complex(*rest)
        if kind == "bytes":
            return bytes.fromhex(rest[0])
        if kind in ("tuple", "frozenset", "range"):
            inside = [self.unpack(one) for one in rest[0]]
            return range(*inside) if kind == "range" else tuple(inside) if kind == "tuple" else frozenset(inside)
        if kind == "at":
            return self.objects[rest[0]]
        if kind in ("keys", "items"):
            inner: dict[Any, Any] = self.unpack(rest[0])
            return inner.keys() if kind == "keys" else inner.items()
        if kind == "made":
            module, name, parts = rest
            if (module, name) not in MADE:
                raise ValueError(f"no value is made as {name}")
            return getattr(importlib.import_module(module), name)(*map(self.unpack, parts))
        return self._resolve(kind, rest[0])

    def _fill(self, value: Any, content: list[Any]) -> None:
        kind, inside, *_ = content
        if not isinstance(value, CHANGEABLE[kind]):
            raise TypeError(f"a {type(value).__name__} cannot become a {kind}")
        value.clear()
        if kind == "bytearray":
            value.extend(bytes.fromhex(inside))
        elif kind == "dict":
            for key, one in inside:
                value[self.unpack(key)] = self.unpack(one)
        elif kind == "set":
            value.update(map(self.unpack, inside))
        else:
            value.extend(map(self.unpack, inside))


def _empty(content: list[Any]) -> Any:
    kind, _, *most = content
    return deque(maxlen=most[0]) if kind == "deque" else CHANGEABLE[kind]()
