"""How text from outside (a checkpoint, a request, a command line) appears in messages and logs: never as it is, never
at length."""

from __future__ import annotations

import re
import reprlib

MOST = 100
"""Characters of one quoted value."""

_PLAIN = re.compile(r"[A-Za-z0-9_.\-]{1,100}")


class _Repr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = MOST
        self.maxlevel = 4

    def repr_int(self, x: int, level: int) -> str:
        """An integer; Python refuses to write those of more than a few thousand digits."""
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > 256 else repr(x)


_repr = _Repr()


def quoted(value: object) -> str:
    """`repr` of a value, cut to about `MOST` characters however large or deep the value is."""
    text = _repr.repr(value)
    return text if len(text) <= MOST + 2 else f"{text[: MOST - 3]}..."


def named(name: object) -> str:
    """A name: as it is if it is plain and short, as most names of tensors are, quoted otherwise."""
    return name if isinstance(name, str) and _PLAIN.fullmatch(name) else quoted(name)


def reason(error: BaseException) -> str:
    """What a library says of a file, which may repeat what the file says."""
    return f"{type(error).__name__}: {quoted(str(error))}"
