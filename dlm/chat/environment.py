"""Jinja's sandbox with a budget: every loop, call, operator, filter and output of a template pays for what it does.

The template's syntax tree is changed before it is compiled: loops and macros begin with a step, and what is written
out, joined or compared is sized. Constants are not folded, so that nothing runs while a template is compiled.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from dlm.chat.budget import MAX_BITS, STEP, Budget, TemplateLimit
from dlm.chat.operations import FILTERS, REPR, bounded_filter, bounded_test, call_method, made_json, percent

BUDGET: ContextVar[Budget] = ContextVar("BUDGET")
"""That of the rendering that goes on in this thread."""

_STEP, _OUTPUT, _COMPARED, _MADE = "(step)", "(output)", "(compared)", "(made)"
"""Filters that only the changed tree names; no template can write such a name."""


class ChatNamespace(Namespace):
    """Jinja's namespace, which shows nothing of what it holds and keeps no private names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = dict(*args, **kwargs)
        for name in given:
            _check_name(name)
        super().__init__(given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError("a namespace in a chat template has no names with an underscore at the start")


class Generation(Extension):
    """`{% generation %}`, which marks what the assistant wrote, for training; its content is rendered as it is."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # the parent's is a set that may be changed

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of Hugging Face's chat templates, bounded. Rendering wants a `BUDGET`."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[Generation, loopcontrols])
        self.globals = {
            "range": _range, "dict": dict, "namespace": ChatNamespace, "raise_exception": _raise, "strftime_now": _now
        }  # fmt: skip
        self.filters = {name: bounded_filter(name, BUDGET.get) for name in FILTERS}
        self.filters |= {"tojson": _to_json, _STEP: _step, _OUTPUT: _output, _COMPARED: _compared, _MADE: _made}
        self.tests = {name: bounded_test(name, BUDGET.get) for name in TESTS}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        changed: nodes.Template = _Metered().visit(tree)
        return changed

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.spend(STEP)
        if isinstance(target, types.BuiltinMethodType):
            named = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}  # Jinja's
            result = call_method(budget, target, args, named)
        elif self._may_call(target):
            result = context.call(target, *args, **kwargs)
        else:
            raise SecurityError(f"a {type(target).__name__} cannot be called in a chat template")
        budget.size(result)
        return result

    def _may_call(self, target: Any) -> bool:
        """Whether this is a macro, a loop or one of its methods, or a function of ours; undefined ones say so."""
        owner = target.__self__ if isinstance(target, types.MethodType) else target
        if isinstance(owner, LoopContext) or isinstance(target, Macro | Undefined):
            return True
        return any(target is known for known in self.globals.values())

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = BUDGET.get()
        budget.spend(STEP + _binop_price(budget, operator, left, right))
        if operator == "%" and isinstance(left, str):
            return percent(budget, left, right)
        result = self.binop_table[operator](left, right)
        budget.size(result)
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            BUDGET.get().spend(BUDGET.get().size(argument))
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        return None  # `call` has its own


def _binop_price(budget: Budget, operator: str, left: Any, right: Any) -> int:
    sizes = budget.size(left) + budget.size(right)
    if operator == "*":
        for values, times in ((left, right), (right, left)):
            if isinstance(values, str | list | tuple) and isinstance(times, int):
                return budget.size(values) * max(0, times)
    whole = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and whole and left.bit_length() * abs(right) > MAX_BITS:
        raise TemplateLimit(f"it makes a number of more than {MAX_BITS} bits")
    return sizes


class _Metered(NodeTransformer):
    """Puts the steps and sizes into a syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.test is not None:
            node.test = nodes.And(_filtered(nodes.Const(1), _STEP), node.test)
        return _stepped(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return _stepped(self.generic_visit(node))

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return _stepped(self.generic_visit(node))

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return _stepped(self.generic_visit(node))

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [each if isinstance(each, nodes.TemplateData) else _filtered(each, _OUTPUT) for each in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered(each, _OUTPUT) for each in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, _COMPARED)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, _COMPARED)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, _COMPARED)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _filtered(self.generic_visit(node), _MADE)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _MADE) if node.ctx == "load" else node


def _filtered(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _stepped(node: Any) -> nodes.Node:
    """The node with a step at the beginning of its body, which pays for the plain text in it too."""
    units = 1 + sum(len(each.data) for each in node.find_all(nodes.TemplateData))
    step = _filtered(nodes.Const(units, lineno=node.lineno), _STEP)
    node.body = [nodes.ExprStmt(step, lineno=node.lineno), *node.body]
    found: nodes.Node = node
    return found


@pass_context
def _step(context: Context, units: int) -> bool:
    BUDGET.get().spend(STEP + units)
    return True


@pass_context
def _output(context: Context, value: Any) -> Any:
    budget = BUDGET.get()
    value = budget.listed(value) if isinstance(value, Iterator) else value
    budget.spend(STEP + budget.size(value) * (1 if isinstance(value, str) else REPR))
    return value


@pass_context
def _compared(context: Context, value: Any) -> Any:
    budget = BUDGET.get()
    budget.spend(STEP + budget.size(value) // 4)
    return value


@pass_context
def _made(context: Context, value: Any) -> Any:
    budget = BUDGET.get()
    budget.spend(STEP + len(value) + (sum(map(budget.size, value)) if isinstance(value, dict) else 0))
    budget.size(value)
    return value


@pass_context
def _to_json(context: Context, value: Any, **options: Any) -> str:
    return made_json(BUDGET.get(), value, **options)


def _range(*args: int) -> range:
    made = range(*args)
    BUDGET.get().size(made)
    return made


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _now(form: str) -> str:
    """The date and time, as `strftime` writes them."""
    if len(form) > 100 or re.search(r"%[^A-Za-z%]", form):
        raise SecurityError("strftime_now takes a short format without widths")
    return datetime.now().strftime(form)
