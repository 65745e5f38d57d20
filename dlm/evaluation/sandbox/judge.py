"""The judge's process: runs the tests of a program that runs in another process, and reports whether they passed.

Standard input holds `program`, `tests` and `setup` as JSON. Two lines go to the pipe `verdicts`: whether both processes
are confined, written before any of these texts runs, and the verdict.

The tests call the program's functions by name. Names defined by the tests or their setup, built-in functions and
standard modules never come from the program, so it cannot replace `abs` or `math.isclose`.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import symtable
import sys
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from dlm.evaluation.sandbox.peer import Ended, Peer
from dlm.evaluation.sandbox.rights import confine, limit
from dlm.evaluation.sandbox.values import Packer

NAME = "tests"
"""Name of the module the tests run in."""


def main(reading: int, writing: int, seconds: int, memory_mib: int, verdicts: int) -> NoReturn:
    """Judge the program given on standard input. The first two and the last argument are descriptors."""
    asked: dict[str, str] = json.loads(sys.stdin.buffer.read())
    peer = Peer(os.fdopen(reading, "rb"), os.fdopen(writing, "wb"), _is_of_tests)
    try:
        limit(seconds, memory_mib)
        confine()
        ready = peer.receive()
    except (OSError, RuntimeError, ValueError) as error:
        ready = {"confined": False, "reason": str(error)}
    except Ended as error:
        ready = {"confined": True, "ended": str(error)}
    _tell(verdicts, ready)
    if not ready["confined"]:
        os._exit(0)
    state, reason = ("ended", ready["ended"]) if "ended" in ready else _judge(peer, **asked)
    _tell(verdicts, {"state": state, "reason": reason[:300]})
    os._exit(0)


def _tell(verdicts: int, said: dict[str, Any]) -> None:
    os.write(verdicts, json.dumps(said).encode() + b"\n")


def _judge(peer: Peer, program: str, tests: str, setup: str) -> tuple[str, str]:
    """Run the program and its tests; returns the state and the reason."""
    try:
        peer.send({"program": program})
        ran = peer.receive()
        if "failed" in ran:
            return "failed", str(ran["failed"])
        module = ModuleType(NAME)
        sys.modules[NAME] = module
        exec(compile(setup, "setup.py", "exec"), module.__dict__)
        wanted = free_names(tests) - module.__dict__.keys() | _drop_classes(module.__dict__)
        _bind(module.__dict__, wanted & set(ran["names"]), modules_of(tests), peer)
        exec(compile(tests, "tests.py", "exec"), module.__dict__)
    except Ended as error:
        return "ended", str(error)
    except BaseException as error:
        return ("ended", "") if peer.ended else ("failed", f"{type(error).__name__}: {error}")
    return ("ended", "") if peer.ended else ("passed", "")


def _is_of_tests(value: Any) -> bool:
    return type(value).__module__ == NAME


class _Foreign(Exception):
    """A value that belongs to a class of the setup."""


def _drop_classes(names: dict[str, Any]) -> set[str]:
    """Remove the setup's classes and their instances from `names`, and return what was removed.

    The program's process has run the same setup; its classes are the ones that its functions can handle.
    """

    def export(value: Any) -> list[Any]:
        if _is_of_tests(value) or (isinstance(value, type) and value.__module__ == NAME):
            raise _Foreign
        return ["mine", 0]

    dropped = set()
    for name, value in list(names.items()):
        if name.startswith("__") or isinstance(value, FunctionType | ModuleType):
            continue
        packer = Packer(export)
        try:
            packer.pack(value)
            packer.contents()
        except _Foreign:
            dropped.add(name)
            del names[name]
    return dropped


def _bind(names: dict[str, Any], wanted: set[str], modules: set[str], peer: Peer) -> None:
    """Take the `wanted` names from the program; standard modules among them are imported here instead.

    Built-in names are left alone, unless there are no others: then the function under test is called like a built-in.
    """
    program = peer.remote(0)
    for name in sorted(wanted - set(dir(builtins)) or wanted):
        standard = name in modules and name in sys.stdlib_module_names
        names[name] = importlib.import_module(name) if standard else peer.ask("get", program, name)


def free_names(text: str) -> set[str]:
    """The names a module uses but does not define. Raises `SyntaxError`."""
    top = symtable.symtable(text, "tests.py", "exec")
    used: set[str] = set()
    bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                used.add(symbol.get_name())
            if symbol.is_declared_global() and symbol.is_assigned():
                bound.add(symbol.get_name())
    return {name for name in used - bound if not name.startswith("__")}


def modules_of(text: str) -> set[str]:
    """The names whose attributes a module accesses. Raises `SyntaxError`."""
    attributes = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    return {value.id for value in attributes if isinstance(value, ast.Name)}
