"""Values as JSON, so that a process can accept them from one it does not trust.

Numbers, strings, collections and a few more standard types are copied; instances of subclasses become their base type.
Any other object stays in its process and is referred to by a number. Mutable values are listed in a table of the
message, so that shared references stay shared and in-place changes can be sent back.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

SMALL = 2**63
"""Integers from here on are written in hexadecimal: converting large ones to decimal takes quadratic time."""

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
"""Types copied by their constructor arguments: module and name, and how to get the arguments."""

CHANGEABLE: dict[str, type[Any]] = {"list": list, "dict": dict, "set": set, "bytearray": bytearray, "deque": deque}


class Packer:
    """Packs the values of one message.

    Args:
        export: gives the reference for an object that stays here.
        objects: mutable values the other side already has, in its order.
    """

    def __init__(self, export: Callable[[Any], list[Any]], objects: Iterable[Any] = ()) -> None:
        self.objects = list(objects)
        self._places = {id(value): place for place, value in enumerate(self.objects)}
        self._export = export

    def pack(self, value: Any) -> Any:
        """The value in JSON's types; for a mutable one, its place in `contents`."""
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
        """The contents of every mutable value, nested ones included."""
        return [self._content(value) for value in self.objects]  # grows while it is being read

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
        resolve: gives the object, or a stand-in for it, for a reference made by `export`.
        contents: those of the message; None for a value that has not changed.
        objects: values this side already has; updated in place.

    Raises:
        Exception: of any kind, if `Packer` did not make this message.
    """

    def __init__(self, resolve: Callable[[str, int], Any], contents: list[Any], objects: Iterable[Any] = ()) -> None:
        self._resolve = resolve
        self.objects = list(objects)
        self.objects += [_empty(content) for content in contents[len(self.objects) :]]
        for value, content in zip(self.objects, contents, strict=True):
            if content is not None:
                self._fill(value, content)

    def unpack(self, packed: Any) -> Any:
        """The value a packed one stands for."""
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
                raise ValueError(f"{name!r} is not a type that is copied")
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
