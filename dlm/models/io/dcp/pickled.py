"""Pickles as data: what torch writes, read without making or touching a single object of the process.

A pickle is a program for a small machine with a stack. This one knows the opcodes that the picklers of torch emit
(protocols 2 to 5), and makes tuples, lists, texts, numbers and the records below of them: a name stays a name, and what
the pickle wants to be called or built stays a note of it. Nothing is hashed or compared, so that nested tuples cost
what they weigh. Every other opcode is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from dlm._quoting import named, quoted

MAX_OPCODES = 24_000_000
"""Enough for some 250,000 shards of tensors."""

MAX_STACK = 100_000
"""Values that wait; picklers write long lists in parts of a thousand."""

MAX_MARKS = 100
"""Lists, tuples and dictionaries that are open at once."""

MAX_TEXT = 1 << 16
"""Bytes of one text."""


class PickleError(ValueError):
    """A pickle that is damaged, or holds what is not read here."""


@dataclass(frozen=True, slots=True)
class Name:
    """What the pickle calls a class, a function or a constant of Python."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Made:
    """What the pickle wants made.

    Attributes:
        name: of the class or function.
        arguments: to be called with.
        state: to be set afterwards; None where there is none.
    """

    name: Name
    arguments: tuple[Any, ...]
    state: Any = None

    def __repr__(self) -> str:
        return f"{self.name}(...)"


@dataclass(eq=False, repr=False, slots=True)
class Pairs:
    """A dictionary as the pickle writes it: its keys may be anything, and one may stand there twice."""

    pairs: list[tuple[Any, Any]]

    def __repr__(self) -> str:
        return "{...}"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Persistent:
    """Something that lies beside the pickle."""

    key: Any

    def __repr__(self) -> str:
        return "storage(...)"


ORDERED = Name("collections", "OrderedDict")


class PickleReader:
    """One pickle.

    Args:
        content: its bytes.
        names: of classes and functions that may occur, each with its module and a dot before it.
    """

    def __init__(self, content: bytes, names: Collection[str]) -> None:
        self._content, self._names = content, names
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """What the pickle stands for. `PickleError` for anything but a whole pickle of known parts."""
        content, opcodes, stack = self._content, _OPCODES, self._stack
        try:
            for _ in range(MAX_OPCODES):
                code = content[self._at]
                self._at += 1
                if code == _STOP:
                    return self._result()
                opcodes[code](self)
                if len(stack) > MAX_STACK:
                    raise PickleError(f"more than {MAX_STACK} values wait at once")
        except KeyError:
            raise PickleError(f"opcode {code:#04x} at byte {self._at - 1}, which torch does not write") from None
        except (IndexError, struct.error):
            raise PickleError(f"it ends or breaks off at byte {self._at}") from None
        except UnicodeDecodeError:
            raise PickleError(f"text that is not UTF-8 before byte {self._at}") from None
        raise PickleError(f"more than {MAX_OPCODES} opcodes")

    def _result(self) -> Any:
        if len(self._stack) != 1 or self._marks or self._at != len(self._content):
            raise PickleError(f"something is left over at its end, byte {self._at}")
        return self._stack[0]

    # Parts of an opcode's argument

    def _bytes(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._content):
            raise IndexError
        found = self._content[self._at : end]
        self._at = end
        return found

    def _number(self, form: struct.Struct) -> Any:
        (found,) = form.unpack_from(self._content, self._at)
        self._at += form.size
        return found

    def _line(self) -> str:
        end = self._content.find(b"\n", self._at, self._at + MAX_TEXT)
        if end < 0:
            raise IndexError
        line = self._bytes(end - self._at).decode("utf-8")
        self._at += 1
        return line

    def _pop(self, kind: type | tuple[type, ...] = object) -> Any:
        """The topmost value above the last mark, of a type."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise IndexError
        found = self._stack.pop()
        if not isinstance(found, kind):
            raise PickleError(f"{quoted(found)} stands where it cannot, before byte {self._at}")
        return found

    def _above_mark(self) -> list[Any]:
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _top(self, kind: type) -> Any:
        found = self._pop(kind)
        self._stack.append(found)
        return found

    # Opcodes

    def _skip_protocol(self) -> None:
        if self._number(_U8) > 5:
            raise PickleError("a protocol above 5")

    def _skip_frame(self) -> None:
        if self._number(_U64) > len(self._content) - self._at:
            raise IndexError

    def _mark(self) -> None:
        if len(self._marks) >= MAX_MARKS:
            raise PickleError(f"more than {MAX_MARKS} lists are open at once")
        self._marks.append(len(self._stack))

    def _long(self) -> None:
        self._stack.append(int.from_bytes(self._bytes(self._number(_U8)), "little", signed=True))

    def _text(self, length: struct.Struct) -> None:
        count = self._number(length)
        if count > MAX_TEXT:
            raise PickleError(f"a text of {count} bytes; at most {MAX_TEXT} are read")
        self._stack.append(self._bytes(count).decode("utf-8", "surrogatepass"))

    def _tuple(self, count: int) -> None:
        found = tuple(self._pop() for _ in range(count))
        self._stack.append(found[::-1])

    def _tuple_above_mark(self) -> None:
        self._stack.append(tuple(self._above_mark()))

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _append_above_mark(self) -> None:
        values = self._above_mark()
        self._top(list).extend(values)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._top(Pairs).pairs.append((key, value))

    def _set_above_mark(self) -> None:
        values = self._above_mark()
        if len(values) % 2:
            raise PickleError(f"a key without a value before byte {self._at}")
        self._top(Pairs).pairs.extend(zip(values[::2], values[1::2], strict=True))

    def _global(self) -> None:
        module = self._line()
        self._name(module, self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(str), self._pop(str)
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        if f"{module}.{name}" not in self._names:
            raise PickleError(f"it asks for {named(f'{module}.{name}')}, which no checkpoint of torch holds")
        self._stack.append(Name(module, name))

    def _call(self) -> None:
        arguments, name = self._pop(tuple), self._pop(Name)
        self._stack.append(Pairs([]) if name == ORDERED and not arguments else Made(name, arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._pop((Made, Pairs))
        if isinstance(target, Pairs) or target.state is not None:
            raise PickleError(f"state for what has one already, before byte {self._at}")
        target.state = state
        self._stack.append(target)

    def _persistent(self) -> None:
        self._stack.append(Persistent(self._pop()))

    def _put(self, number: struct.Struct | None) -> None:
        key = len(self._memo) if number is None else self._number(number)
        self._memo[key] = self._top(object)

    def _get(self, number: struct.Struct) -> None:
        key = self._number(number)
        if key not in self._memo:
            raise PickleError(f"a reference to nothing before byte {self._at}")
        self._stack.append(self._memo[key])


_U8, _U16, _U32, _I32, _U64, _F64 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<i", "<Q", ">d"))
_STOP = ord(".")


def _push(value: Any) -> Callable[[PickleReader], None]:
    return lambda reader: reader._stack.append(value)


def _push_number(form: struct.Struct) -> Callable[[PickleReader], None]:
    return lambda reader: reader._stack.append(reader._number(form))


_OPCODES: dict[int, Callable[[PickleReader], None]] = {
    0x80: PickleReader._skip_protocol,
    0x95: PickleReader._skip_frame,
    ord("("): PickleReader._mark,
    ord("N"): _push(None),
    0x88: _push(True),
    0x89: _push(False),
    ord("J"): _push_number(_I32),
    ord("K"): _push_number(_U8),
    ord("M"): _push_number(_U16),
    ord("G"): _push_number(_F64),
    0x8A: PickleReader._long,
    ord("X"): lambda reader: reader._text(_U32),
    0x8C: lambda reader: reader._text(_U8),
    ord(")"): _push(()),
    0x85: lambda reader: reader._tuple(1),
    0x86: lambda reader: reader._tuple(2),
    0x87: lambda reader: reader._tuple(3),
    ord("t"): PickleReader._tuple_above_mark,
    ord("]"): lambda reader: reader._stack.append([]),
    ord("a"): PickleReader._append,
    ord("e"): PickleReader._append_above_mark,
    ord("}"): lambda reader: reader._stack.append(Pairs([])),
    ord("s"): PickleReader._set_item,
    ord("u"): PickleReader._set_above_mark,
    ord("c"): PickleReader._global,
    0x93: PickleReader._stack_global,
    ord("R"): PickleReader._call,
    0x81: PickleReader._call,
    ord("b"): PickleReader._build,
    ord("Q"): PickleReader._persistent,
    ord("q"): lambda reader: reader._put(_U8),
    ord("r"): lambda reader: reader._put(_U32),
    0x94: lambda reader: reader._put(None),
    ord("h"): lambda reader: reader._get(_U8),
    ord("j"): lambda reader: reader._get(_U32),
}
"""Opcode -> what it does. What a pickle is called or built with stays data: REDUCE and NEWOBJ are one."""
