"""Calls between the two processes: each can ask the other to call a function or to look into an object.

Neither side trusts the other: messages are decoded by `values`, and a malformed one ends the connection.
"""

from __future__ import annotations

import builtins
import json
import operator
from collections.abc import Callable
from typing import Any, BinaryIO

from dlm.evaluation.sandbox.values import Packer, Unpacker

LONGEST = 64 * 2**20
"""Bytes in a message, at most."""
PLAIN = (str, int, float, bool, type(None))


class Ended(BaseException):
    """The other side is gone or has sent something malformed. Not an `Exception`, since tests may catch those."""


class Remote:
    """An object in the other process.

    Calls, attributes, items, length, truth and iteration are forwarded. Arithmetic and comparisons with values are not,
    and it equals no value: the other process must not see what its answer is compared with. Two objects of the other
    process are compared there.
    """

    __slots__ = ("__number", "__peer")  # mangled, so that every plain name is the object's

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_Remote__peer", peer)
        object.__setattr__(self, "_Remote__number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__peer.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols such as __array_interface__ would trust the other side's pointers
            raise AttributeError(f"{name!r} of an object in another process cannot be used")
        return self.__peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__peer.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self.__peer.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__peer.ask("put", self, key, value)

    def __len__(self) -> int:
        return operator.index(self.__peer.ask("len", self))

    def __iter__(self) -> Any:
        return self.__peer.ask("iter", self)

    def __next__(self) -> Any:
        return self.__peer.ask("next", self)

    def __bool__(self) -> bool:
        return self.__peer.ask("bool", self) is True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self.__peer.ask("equal", self, other) is True

    __hash__ = object.__hash__


class Peer:
    """This process's end of the connection.

    Args:
        reading: messages from the other side, one per line.
        writing: messages to it.
        opens: whether the other side may access attributes of an object it was given.
    """

    def __init__(self, reading: BinaryIO, writing: BinaryIO, opens: Callable[[Any], bool]) -> None:
        self.reading, self.writing, self.opens = reading, writing, opens
        self.ended = False
        self._exports: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._remotes: dict[int, Remote] = {}

    def send(self, message: dict[str, Any]) -> None:
        """Raises `Ended`."""
        line = json.dumps(message).encode() + b"\n"
        try:
            self.writing.write(line)
            self.writing.flush()
        except OSError as error:
            raise self._end("") from error

    def receive(self) -> dict[str, Any]:
        """The next message. Raises `Ended`."""
        try:
            line = self.reading.readline(LONGEST)
            message = json.loads(line) if line else None
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            raise self._end("its answer cannot be decoded") from error
        if message is None:
            raise self._end("")
        if not isinstance(message, dict):
            raise self._end("it answered out of turn")
        return message

    def export(self, value: Any) -> list[Any]:
        """The reference for an object, of this side or of the other."""
        if isinstance(value, Remote):
            return ["yours", object.__getattribute__(value, "_Remote__number")]
        number = self._numbers.setdefault(id(value), len(self._exports))
        if number == len(self._exports):
            self._exports.append(value)
        return ["mine", number]

    def remote(self, number: int) -> Remote:
        """The other side's object with this number."""
        return self._remotes.setdefault(number, Remote(self, number))

    def ask(self, operation: str, *operands: Any) -> Any:
        """Have the other side perform one of `OPERATIONS`.

        Raises:
            Ended: there was no valid answer.
            BaseException: the exception raised there, as the built-in type it derives from.
        """
        packer = Packer(self.export)
        packed = [packer.pack(one) for one in operands]
        self.send({"ask": operation, "operands": packed, "contents": packer.contents()})
        while "ask" in (message := self.receive()):
            self._answer(message)
        try:
            values = Unpacker(self._resolve, message["contents"], packer.objects)
            raised = _raised(*message["raises"]) if "raises" in message else None
            given = values.unpack(message["gives"]) if raised is None else None
        except Exception as error:
            raise self._end("its answer is malformed") from error
        if isinstance(raised, StopIteration) and operation != "next":
            # It would silently end a loop over calls, such as all(map(f, cases)).
            raise RuntimeError("the function raised StopIteration") from raised
        if raised is not None:
            raise raised
        return given

    def serve(self) -> None:
        """Answer requests until the other side is gone, then raise `Ended`."""
        while True:
            self._answer(self.receive())

    def _answer(self, message: dict[str, Any]) -> None:
        try:
            values = Unpacker(self._resolve, message["contents"])
            operands = [values.unpack(one) for one in message["operands"]]
            operation = OPERATIONS[message["ask"]]
        except Exception as error:
            raise self._end("its request is malformed") from error
        packer = Packer(self.export, values.objects)
        answer: dict[str, Any]
        try:
            answer = {"gives": packer.pack(operation(self, *operands))}
            contents = packer.contents()
        except Ended:
            raise
        except BaseException as error:
            answer = {"raises": _told(error)}
            contents = packer.contents()
        for place, before in enumerate(message["contents"]):
            if contents[place] == before:
                contents[place] = None
        self.send({**answer, "contents": contents})

    def _resolve(self, kind: str, number: int) -> Any:
        if kind == "mine":
            return self.remote(int(number))
        if kind == "yours":
            return self._exports[number]
        raise ValueError("unknown kind of value")

    def _end(self, reason: str) -> Ended:
        self.ended = True
        return Ended(reason)


def _attribute(peer: Peer, target: Any, name: str) -> str:
    """The name, if the other side may access it. Raises `AttributeError`."""
    if not isinstance(name, str) or name.startswith("__") or not peer.opens(target):
        raise AttributeError(
            f"attribute {name!r} of a {type(target).__name__!r} object cannot be used from another process"
        )
    return name


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda peer, target, args, kwargs: target(*args, **kwargs),
    "get": lambda peer, target, name: getattr(target, _attribute(peer, target, name)),
    "set": lambda peer, target, name, value: setattr(target, _attribute(peer, target, name), value),
    "item": lambda peer, target, key: target[key],
    "put": lambda peer, target, key, value: operator.setitem(target, key, value),
    "len": lambda peer, target: len(target),
    "iter": lambda peer, target: iter(target),
    "next": lambda peer, target: next(target),
    "bool": lambda peer, target: bool(target),
    "equal": lambda peer, target, other: bool(target == other),
}
"""What the other side can ask for; the target is an object of this side."""


def _told(error: BaseException) -> list[Any]:
    """The name of the built-in exception that this one is or derives from, and its arguments."""
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
    plain = all(type(one) in PLAIN for one in error.args)
    return [name, [one[:300] if isinstance(one, str) else one for one in error.args] if plain else [str(error)[:300]]]


def _raised(name: str, arguments: list[Any]) -> BaseException:
    """The exception described by the other side."""
    kind = getattr(builtins, name)
    if not issubclass(kind, BaseException):
        raise TypeError("not an exception")
    try:
        made: BaseException = kind(*arguments)
    except TypeError:
        made = Exception(*arguments)
    return made
