"""Two ends of a talk: values arrive as they were, objects stay, and no message harms who reads it."""

from __future__ import annotations

import datetime
import decimal
import fractions
import io
import json
import math
import os
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.evaluation.sandbox.peer import Ended, Peer, Remote
from dlm.evaluation.sandbox.values import Packer, Unpacker


class Module(SimpleNamespace):
    """What the far end offers."""


def far_functions() -> Module:
    def change(values: Any) -> Any:
        values.append(len(values))
        return values

    return Module(
        echo=lambda value: value,
        kind=lambda value: type(value).__name__,
        change=change,
        apply=lambda function, *values: [function(value) for value in values],
        fail=lambda error: (_ for _ in ()).throw(error),
        Point=lambda x: Module(x=x, double=lambda: 2 * x),
        numbers=lambda: iter((1, 2, 3)),
        part=lambda value, name: getattr(value, name),
        array=lambda: np.arange(3),
        scalar=lambda: [np.float64(0.5), np.int64(3), np.bool_(True)],
    )


@contextmanager
def linked(functions: Module) -> Iterator[Any]:
    """The far end's functions, as this end has them; the far end is served by a thread."""
    asked, asks = os.pipe()
    answers, answered = os.pipe()
    there = Peer(os.fdopen(asked, "rb"), os.fdopen(answered, "wb"), lambda value: True)
    here = Peer(os.fdopen(answers, "rb"), os.fdopen(asks, "wb"), lambda value: False)
    there.export(functions)

    def serve() -> None:
        with pytest.raises(Ended):
            there.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield here.remote(0)
    finally:
        here.writing.close()
        thread.join()
        for end in (here.reading, there.reading, there.writing):
            end.close()


@pytest.fixture
def far() -> Iterator[Any]:
    with linked(far_functions()) as functions:
        yield functions


atoms = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers(),
    st.integers(2**62, 2**70), st.fractions(), st.decimals(), st.dates(),  st.timedeltas(),
    st.one_of(st.times(), st.datetimes()).map(lambda time: time.replace(fold=0)),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9)),
)  # fmt: skip
keys = st.recursive(
    st.one_of(st.integers(), st.text(), st.booleans(), st.binary()),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(keys, max_size=4),
        st.lists(inner, max_size=3).map(lambda given: deque(given, maxlen=3)),
        st.binary().map(bytearray),
    ),
    max_leaves=12,
)


def copied(value: Any) -> Any:
    """Packed, written as JSON, read and unpacked."""

    def none(*given: Any) -> Any:
        raise AssertionError(f"an object: {given}")

    packer = Packer(none)
    packed = packer.pack(value)
    message = json.loads(json.dumps([packed, packer.contents()]))
    return Unpacker(none, message[1]).unpack(message[0])


@settings(max_examples=50)
@given(values)
def test_values_arrive_as_they_were(value: Any) -> None:
    found = copied(value)
    assert repr(_sorted(found)) == repr(_sorted(value))
    assert type(found) is type(value)


def _sorted(value: Any) -> Any:
    """Sets as sorted lists: their order is nobody's."""
    if isinstance(value, set | frozenset):
        return (type(value).__name__, sorted((_sorted(one) for one in value), key=repr))
    if isinstance(value, list | tuple | deque):
        return [type(value).__name__, *map(_sorted, value)]
    if isinstance(value, dict):
        return [(_sorted(key), _sorted(one)) for key, one in value.items()]
    return value


def test_an_object_that_holds_itself_and_two_that_are_one() -> None:
    value: list[Any] = [1]
    value += [value, (value, {"again": value})]
    found = copied(value)
    assert found[1] is found
    assert found[2][0] is found
    assert found[2][1]["again"] is found


def test_views_of_a_dict_compare_as_such() -> None:
    assert copied({"a": 1, "b": [2]}.keys()) == {"a", "b"}
    assert list(copied({"b": 1, "a": 2}.items())) == [("b", 1), ("a", 2)]
    assert copied({1: 2}.keys()) != [1]


def test_numbers_of_any_size() -> None:
    for number in (2**63 - 1, 2**63, -(2**63), 10**10_000, -(10**10_000)):
        assert copied(number) == number
    assert math.copysign(1, copied(-0.0)) == -1
    assert math.isnan(copied(math.nan))
    assert copied([math.inf, True, 1, 1.0]) == [math.inf, True, 1, 1.0]
    assert [type(one) for one in copied([True, 1, 1.0])] == [bool, int, float]


def test_calls_give_values_back(far: Any) -> None:
    for value in (
        3,
        "x",
        [1, (2, {"y": {3}})],
        fractions.Fraction(1, 3),
        decimal.Decimal("1.50"),
        datetime.date(2024, 2, 29),
    ):
        assert far.echo(value) == value
    assert far.kind(far.kind) == "function"
    assert far.scalar() == [0.5, 3, True]
    assert [type(one) for one in far.scalar()] == [float, int, bool]


def test_what_a_call_changes_is_changed(far: Any) -> None:
    values: list[Any] = [5]
    inner = {"list": values}
    assert far.change(values) is values
    assert values == [5, 1]
    assert far.echo(inner) is inner
    assert inner["list"] is values
    ordered = OrderedDict(b=1, a=2)
    counted = Counter("aab")
    assert far.echo((ordered, counted)) == (ordered, counted)
    assert (list(ordered), counted.most_common(1)) == (["b", "a"], [("a", 2)])


def test_functions_of_this_end_are_called_from_there(far: Any) -> None:
    calls = []
    assert far.apply(lambda value: calls.append(value) or value + 1, 1, 2) == [2, 3]
    assert calls == [1, 2]
    assert far.apply(far.echo, "x") == ["x"]
    with pytest.raises(ZeroDivisionError):
        far.apply(lambda value: 1 // value, 0)


def test_objects_stay_where_they_are(far: Any) -> None:
    point = far.Point(3)
    assert isinstance(point, Remote)
    assert (point.x, point.double()) == (3, 6)
    point.x = [4]
    assert point.x == [4]
    assert far.echo(point) is point
    assert far.part(point, "x") == [4]
    assert point == point
    assert point != far.Point(5)
    assert list(far.numbers()) == [1, 2, 3]
    assert (len(far.array()), far.array()[2], list(far.array())) == (3, 2, [0, 1, 2])
    with pytest.raises(AttributeError):
        point.absent  # noqa: B018


def test_an_object_takes_part_in_no_arithmetic_or_comparison(far: Any) -> None:
    point = far.Point(3)
    for value in (3, "x", None, [3], (), {}, 1.5, True):
        assert point != value
        assert value != point
    assert point not in [3, None]
    for attempt in (
        lambda: point + 1, lambda: 1 - point, lambda: abs(point), lambda: point < 4, lambda: float(point),
        lambda: int(point), lambda: round(point), lambda: point <= 4, lambda: -point, lambda: "x" + point,
    ):  # fmt: skip
        with pytest.raises(TypeError):
            attempt()
    for name in ("__array_interface__", "__array__", "__deepcopy__", "__float__", "__index__"):
        assert not hasattr(point, name)


def test_nothing_of_this_end_is_looked_into_from_there(far: Any) -> None:
    generator = (one for one in (1, 2))
    for value, name in ((generator, "gi_frame"), (lambda: 0, "__globals__"), (math, "os"), (far_functions, "x")):
        with pytest.raises(AttributeError):
            far.part(value, name)


@pytest.mark.parametrize(
    ("error", "arrives"),
    [
        (ValueError("x"), "ValueError('x')"),
        (KeyError("x"), "KeyError('x')"),
        (OSError(2, "x"), "FileNotFoundError(2, 'x')"),
        (json.JSONDecodeError("x", "", 0), "ValueError('x: line 1 column 1 (char 0)')"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), "Exception("),
        (ExceptionGroup("x", [ValueError()]), "Exception("),
        (SystemExit(0), "SystemExit(0)"),
        (StopIteration(), "RuntimeError("),
    ],
)  # fmt: skip
def test_errors_arrive_as_python_has_them(error: BaseException, arrives: str) -> None:
    def fails() -> None:
        raise error

    with linked(Module(fails=fails)) as far, pytest.raises(BaseException) as raised:  # noqa: PT011
        far.fails()
    assert repr(raised.value).startswith(arrives)


KINDS = ["int", "tuple", "at", "mine", "yours", "made", "range", "bytes", "keys", "list", "dict", "deque"]
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=4),
              st.sampled_from(KINDS)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
messages = st.fixed_dictionaries(
    {},
    optional={
        "ask": st.sampled_from(["call", "get", "set", "item", "put", "len", "iter", "next", "bool", "equal", "x"])
        | junk,
        "operands": junk,
        "gives": junk,
        "raises": st.lists(st.sampled_from(["ValueError", "SystemExit", "int", "eval", "x"]) | junk, max_size=2),
        "contents": junk,
    },
)


@settings(max_examples=200)
@given(st.lists(messages | junk, max_size=4), st.binary(max_size=20))
def test_no_answer_does_more_than_end_the_talk(answers: list[Any], rest: bytes) -> None:
    """What comes back is a value, an exception of Python's or `Ended`; the argument alone may be changed."""
    lines = b"".join(json.dumps(one).encode() + b"\n" for one in answers) + rest
    peer = Peer(io.BytesIO(lines), io.BytesIO(), lambda value: False)
    argument, kept = [1, 2], [3]
    try:
        found = peer.remote(0)(argument)
    except (Ended, Exception, SystemExit, KeyboardInterrupt, GeneratorExit):
        pass
    else:
        assert not callable(found) or isinstance(found, Remote | type(None)) or found is argument
    assert kept == [3]
