"""The source tree: arrows between packages point one way, no import is circular, and the public names are listed."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dlm

ROOT = Path(dlm.__file__).parent
FLOORS = (
    ("errors", "_lazy", "_quoting"),
    ("_paths", "chat", "distributed"),
    ("models",),
    ("text", "decoding"),
    ("likelihood", "sampling_params", "demo"),
    ("inputs", "outputs", "data"),
    ("runs", "llm"),
    ("config",),
    ("cli",),
    ("pipeline",),
    ("training", "evaluation"),
    ("rl", "report"),
    ("serving",),
    ("bench",),
    ("selfcheck", "lm_eval", "predict", "evaluate", "serve", "train", "convert", "merge"),
)
"""Rooms from the ground up: each imports those of lower floors and no others, nor its neighbours on the same floor."""
LARGEST = 16
"""Modules in one folder."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("dlm", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports(name: str) -> tuple[tuple[str, str], ...]:
    """Modules that a module imports, at its top or later or for its types alone, each with the name taken from it."""
    return tuple(_imports(name))


def _imports(name: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in MODULES else (node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_every_room_has_a_floor() -> None:
    named = [one for floor in FLOORS for one in floor]
    assert sorted(named) == sorted({room(name) for name in MODULES} - {""})


def test_arrows_point_down() -> None:
    height = {one: number for number, floor in enumerate(FLOORS) for one in floor}
    up = [
        f"{name} imports {other}"
        for name in MODULES
        for other, _ in imports(name)
        if other in MODULES and room(name) and room(other) not in ("", room(name))
        if height[room(other)] >= height[room(name)]
    ]
    assert not up


def test_no_import_runs_in_a_circle() -> None:
    graph = {name: {other for other, _ in imports(name) if other in MODULES and other != name} for name in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_private_names_stay_in_their_module_and_private_modules_in_their_package() -> None:
    taken = []
    for name in MODULES:
        for other, part in imports(name):
            if other not in MODULES:
                continue
            package, _, module = other.rpartition(".")
            private_module = module.startswith("_") and not (name == package or name.startswith(f"{package}."))
            if private_module or (part.startswith("_") and not part.startswith("__")):
                taken.append(f"{name} takes {part or module} from {other}")
    assert not taken


def test_no_folder_is_a_heap() -> None:
    folders = [path for path in (ROOT, *ROOT.rglob("*")) if path.is_dir()]
    assert not {folder: count for folder in folders if (count := len([*folder.glob("[a-z]*.py")])) > LARGEST}


@pytest.mark.parametrize(
    "package", [name for name, path in MODULES.items() if path.name == "__init__.py"], ids=lambda name: name
)
def test_a_package_lists_what_is_public(package: str) -> None:
    """`__all__` has the names that the package gives, or its modules."""
    listed = importlib.import_module(package).__all__
    assert len(listed) == len(set(listed)) > 0
    inside = {one.name for one in pkgutil.iter_modules([str(MODULES[package].parent)])}
    for name in listed:
        assert not name.startswith("_")
        assert name in inside or hasattr(importlib.import_module(package), name), name
    rooms = {name for name in inside if not name.startswith("_")}
    if rooms & set(listed):
        assert rooms <= set(listed), "a package that lists its modules lists them all"


def test_the_public_list() -> None:
    """What users import from `dlm`; a change here is a change for them."""
    errors = {name for name, one in vars(dlm.errors).items() if inspect.isclass(one) and issubclass(one, dlm.DLMError)}
    assert set(dlm.__all__) == {"LLM", "SamplingParams", "SparseConfig", *errors}
    for name in dlm.__all__:
        assert inspect.isclass(getattr(dlm, name))
