"""What `docs/` names exists: keys, routes, fields, ranges, error codes, metrics, messages, commands."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import httpx
import pytest
from omegaconf import DictConfig, OmegaConf

from dlm import LLM, SamplingParams
from dlm.bench.config import register as register_bench
from dlm.cli.command_line import compose_config
from dlm.evaluation.config import register as register_evaluate
from dlm.evaluation.sandbox.run import Sandbox
from dlm.report.config import register as register_report
from dlm.rl.grpo.config import register as register_grpo
from dlm.serving.config import register as register_serve
from dlm.serving.schemas.openapi import REASONS
from tests.serving.controlled import controlled
from tests.serving.server import Server

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
API, TROUBLE = ROOT / "docs" / "api.md", ROOT / "docs" / "troubleshooting.md"
FENCE = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NO_KEYS = {"sparse_configs", "base_url", "extra_body", "api_key", "max_retries", "outcome", "batch_sise"}
"""Of the library, of clients, of Prometheus; and one that is wrong on purpose."""
FOREIGN = (
    "Address already in use", "Cannot assign requested address", "LocalEntryNotFoundError", "curl",
)  # fmt: skip
"""Messages of the operating system, of the hub's client and of curl."""


def spans(path: Path) -> Iterator[str]:
    """Inline code."""
    yield from re.findall(r"`([^`]+)`", FENCE.sub("", path.read_text()).replace("\n", " "))


def table(path: Path, *header: str) -> Iterator[list[str]]:
    """Rows of the tables that begin with `header`, without their marks of code."""
    inside = False
    for line in path.read_text().splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.split("|")[1:-1]]
        if line.startswith("|") and tuple(cells[: len(header)]) == header:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not set(line) <= set("|-"):
            yield cells


def composed(name: str, *overrides: str) -> DictConfig:
    for register in (register_serve, register_bench, register_grpo, register_report, register_evaluate):
        register()
    return compose_config(name, overrides)


def keys_of(config: DictConfig, path: str = "") -> Iterator[str]:
    for key in map(str, config):
        yield f"{path}{key}"
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from keys_of(config[key], f"{path}{key}.")


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_keys_exist_and_files_are_short(path: Path) -> None:
    known = {*keys_of(composed("serve", "model=checkpoint")), *keys_of(composed("bench", "target=server"))}
    known |= set(keys_of(composed("predict", "data=jsonl")))
    known |= {*keys_of(composed("grpo", "reward=function")), *keys_of(composed("report", "runs=folder"))}
    known |= {*keys_of(composed("evaluate", "task=humaneval")), *inspect.signature(Sandbox).parameters}
    known |= {
        *inspect.signature(Sandbox.run).parameters,
        *inspect.signature(LLM).parameters,
        *(one.name for one in fields(SamplingParams)),
    }
    found = {match[1] for span in spans(path) for match in re.finditer(r"(?:^|[\s(])([a-z_]+(?:\.[a-z_]+)*)=", span)}
    assert found or path == API, "the pattern finds nothing"
    assert found - known - NO_KEYS == set()
    assert len(path.read_text().splitlines()) < 250


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_commands_compose(path: Path) -> None:
    for block in FENCE.findall(path.read_text()):
        for line in block.splitlines():
            match = re.match(r"python -m dlm\.(serve|bench|rl\.grpo|report) (.*?)&?$", line)
            if match:
                words = [word for word in shlex.split(match[2]) if not word.startswith("-")]
                composed(match[1].removeprefix("rl."), *words)


def test_neighbours_that_are_named_are_there() -> None:
    for path in DOCS:
        for name in re.findall(r"\b((?:docs|launch|conf|tests)/[\w./-]*\w\.\w+)", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_routes_are_those_of_the_server(server: Server) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    with controlled() as (_, client):
        paths |= client.get("/openapi.json").json()["paths"]
    real = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    page = {"GET /", "GET /openapi.json"}
    for path in DOCS:
        named = {f"{verb} {route}" for verb, route in re.findall(r"`(GET|POST) (/[^\s`]*)`", path.read_text())}
        if path.name == "coming_from.md":
            named = {one.replace("/v1/result/{id}", "/v1/result/{request_id}") for one in named} - {"POST /workers/add"}
        assert named - page <= real, path.name
        if path == API:
            assert real <= named


def test_fields_defaults_and_ranges_are_those_of_the_server(server: Server) -> None:
    told = {one["name"]: one for one in httpx.get(f"{server.url}/generation/algorithms").json()["parameters"]}
    document = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    rows = list(table(API, "field", "default", "range", "what"))
    assert len(rows) > 25
    bodies = {*document["ChatRequest"]["properties"], *document["CompletionRequest"]["properties"]}
    checked = set()
    for names, default, span, _ in rows:
        for name in re.sub(r" \(.*?\)|\..*", "", names).split(", "):
            assert name in bodies
            one = told.get(name)
            if one is None or name in ("max_tokens", "seed"):
                continue
            checked.add(name)
            assert default in (str(one["default"]), str(one["default"]).lower(), "null"), name
            if default == "null":
                assert one["default"] is None, name
            limits = re.fullmatch(r"(?:above |from )?([\d.]+)(?: to (.+))?", span)
            low, high = (float(limits[1]), limits[2]) if limits else (None, None)
            assert low == one["minimum"], name
            if high != "gen_length":
                assert (None if high is None else float(high)) == one["maximum"], name
    assert checked == told.keys() - {"max_tokens", "seed"}


def test_errors_are_those_of_the_server() -> None:
    rows = list(table(API, "status", "code", "when"))
    assert {int(status) for status, _, _ in rows} == {*REASONS, 405, 502}
    source = "".join(path.read_text() for path in (ROOT / "dlm" / "serving").rglob("*.py"))
    assert {code for _, code, _ in rows if code} == set(re.findall(r'code="(\w+)"', source))


def test_metrics_are_those_of_the_server(server: Server) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    real = set(re.findall(r"^# HELP (dlm_\w+)", text, re.MULTILINE))
    named = set(re.findall(r"\b(dlm_[a-z_]+)\b", "".join(path.read_text() for path in DOCS))) - {"dlm_events"}
    assert named
    assert named <= real


def quoted() -> list[str]:
    """Messages that the troubleshooting page quotes."""
    found = [span for span in spans(TROUBLE) if len(re.findall(r"[a-z]{2,}", span)) > 4 and "curl -s" not in span]
    return [one for one in found if not any(part in one for part in FOREIGN)]


def pattern(part: ast.expr) -> str:
    text = part.value if isinstance(part, ast.Constant) else None
    return re.escape(text.strip("\n")).replace("%s", ".*?") if isinstance(text, str) else ".*?"


@cache
def templates() -> list[str]:
    """Patterns of all that the programs say: their texts, with anything in place of a value."""
    found = []
    for path in (ROOT / "dlm").rglob("*.py"):
        tree = ast.parse(path.read_text())
        joined = [node.values for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        inner = {part for parts in joined for part in parts}
        whole = [[node] for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in inner]
        found += ["".join(map(pattern, parts)) for parts in [*joined, *whole]]
    for path in (*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")):
        for text in re.findall(r'"([^"\n]+)"', path.read_text()):
            parts = re.split(r"\$\([^)]*\)|\$\{[^}]*\}|\$\w+", text)
            found.append(".*?".join(map(re.escape, parts)))
    return [one for one in found if len(re.findall(r"[A-Za-z]{2,}", one)) > 2]


@pytest.mark.parametrize("message", quoted())
def test_messages_are_said_somewhere(message: str) -> None:
    assert any(re.search(template, message) for template in templates())
