"""What a template may do with values, each operation with its price: methods of text, filters, tests, formatting."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import Formatter
from typing import Any

from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dlm.chat.budget import STEP, Budget, TemplateLimit

MAX_WIDTH = 10_000
"""The largest number that a filter or a method of text takes, such as a width."""

REPR = 10
"""Characters that one takes at most where a list is written out."""

TEXT_METHODS = frozenset(
    {"capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
     "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "lower", "lstrip", "partition", "removeprefix",
     "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
     "swapcase", "title", "upper", "center", "ljust", "rjust", "zfill", "replace", "join", "format"}
)  # fmt: skip
METHODS: Mapping[type, frozenset[str]] = {
    str: TEXT_METHODS,
    dict: frozenset({"items", "keys", "values", "get"}),
    list: frozenset({"index", "count"}),
    tuple: frozenset({"index", "count"}),
}

FILTERS = frozenset(
    {"abs", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
     "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
     "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum",
     "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount"}
)  # fmt: skip
FREE = frozenset({"count", "d", "default", "length"})
"""Filters that pass a value on, or ask for its length."""

FACTORS = {"string": REPR, "join": REPR, "e": 6, "escape": 6, "urlencode": 12, "dictsort": 20, "groupby": 20, "max": 2,
           "min": 2, "sort": 20, "unique": 4}  # fmt: skip
"""What a filter costs for each character of the value, where it is more than one."""

_FORMAT = re.compile(r"%(?:%|[sdifg]|\.\d\d?[fg])")

_sandbox = ImmutableSandboxedEnvironment()


def call_method(budget: Budget, method: types.BuiltinMethodType, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a method of a text, a list or a dictionary.

    Raises:
        SecurityError: one that templates do not need.
        TemplateLimit: it costs too much.
    """
    value, name = method.__self__, method.__name__
    if name not in METHODS.get(type(value), frozenset()):
        raise SecurityError(f"{name} of a {type(value).__name__} is not available in chat templates")
    args = _ready(budget, args)
    budget.spend(STEP + sum(map(budget.size, (*args, *kwargs.values()))))
    if isinstance(value, str):
        budget.spend(_text_price(budget, value, name, args))
        if name == "format":
            return _formatted(budget, value, args, kwargs)
    elif name in ("index", "count"):
        budget.spend(budget.size(value))
    return method(*args, **kwargs)


def _text_price(budget: Budget, value: str, name: str, args: Sequence[Any]) -> int:
    """Characters that a method of `value` reads and writes."""
    if name in ("split", "rsplit", "splitlines"):
        return 16 * len(value)
    if name in ("strip", "lstrip", "rstrip"):
        return len(value) * (1 + sum(map(budget.size, args)) // 16)
    if name in ("center", "ljust", "rjust", "zfill"):
        return 4 * (len(value) + sum(map(_width, args)))
    if name == "replace":
        return len(value) + _replaced(value, args)
    if name == "join":
        return len(value) * sum(len(arg) for arg in args if isinstance(arg, Sequence | Mapping))
    return 3 * len(value)


def _replaced(value: str, args: Sequence[Any]) -> int:
    if len(args) < 2 or not all(isinstance(arg, str) for arg in args[:2]):
        return 0
    return (value.count(args[0]) if args[0] else len(value) + 1) * len(args[1])


def _width(value: Any) -> int:
    if isinstance(value, int) and abs(value) > MAX_WIDTH:
        raise TemplateLimit(f"it asks for a width or a number of {value}; at most {MAX_WIDTH} is possible")
    return abs(value) if isinstance(value, int) else 0


def _ready(budget: Budget, args: Sequence[Any]) -> list[Any]:
    return [budget.listed(arg) if isinstance(arg, Iterator) else arg for arg in args]


def _formatted(budget: Budget, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """`str.format` with plain fields, such as {} or {name}."""
    for _, field, spec, conversion in Formatter().parse(text):
        if field is None:
            continue
        if spec or conversion or not (field == "" or field.isdigit() or field.isidentifier()):
            raise SecurityError("chat templates format with plain fields alone, such as {} or {name}")
        budget.spend(STEP + REPR * sum(map(budget.size, (*args, *kwargs.values()))))
    return text.format(*args, **kwargs)


def percent(budget: Budget, text: str, args: Any) -> str:
    """`text % args` with plain fields, such as %s."""
    if "%" in _FORMAT.sub("", text):
        raise SecurityError("chat templates format with plain fields alone, such as %s")
    budget.spend(len(text) + REPR * budget.size(args))
    made: str = text % args
    return made


def made_json(
    budget: Budget,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON that, unlike Jinja's own, is not escaped for HTML."""
    if indent is not None and (type(indent) is not int or not 0 <= indent <= 16):
        raise TemplateLimit("it asks for JSON with an indent beyond 16")
    encoder = json.JSONEncoder(
        ensure_ascii=bool(ensure_ascii), indent=indent, separators=separators, sort_keys=bool(sort_keys)
    )
    pieces = []
    for piece in encoder.iterencode(value):
        budget.spend(1 + len(piece))
        pieces.append(piece)
    return "".join(pieces)


def bounded_filter(name: str, budget_of: Callable[[], Budget]) -> Callable[..., Any]:
    """A filter of Jinja's that pays before it runs. It sees no lazy value and gives none."""

    @pass_context  # also keeps Jinja from running it on constants while it compiles
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of()
        if name in FREE:
            budget.spend(STEP)
        else:
            others = (*args, *kwargs.values())
            price = budget.size(value) + sum(map(budget.size, others))
            budget.spend(STEP + FACTORS.get(name, 2) * price + _filter_price(budget, name, value, others))
        result = _sandbox.call_filter(name, value, args, kwargs, context)
        if isinstance(result, Iterator):
            result = budget.listed(result)
        budget.size(result)
        return result

    return run


def _filter_price(budget: Budget, name: str, value: Any, others: Sequence[Any]) -> int:
    width = sum(map(_width, others))
    if name == "join":
        return len(value) * budget.size(others[0]) if others and hasattr(value, "__len__") else 0
    if name == "replace":
        return _replaced(str(value), [str(other) for other in others])
    if name == "indent":
        return (str(value).count("\n") + 1) * (4 + sum(map(budget.size, others)) + width)
    if name == "sum" and any(not isinstance(other, str | int | float) for other in others):
        raise SecurityError("sum adds numbers alone in chat templates")
    return STEP * width


def bounded_test(name: str, budget_of: Callable[[], Budget]) -> Callable[..., Any]:
    """A test of Jinja's that pays before it runs."""

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of()
        budget.spend(STEP + (budget.size(value) + sum(map(budget.size, args))) // 4)
        return _sandbox.call_test(name, value, args, kwargs, context)

    return run
