"""Tables and JSON of load tests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from dlm.bench.load.config import LoadConfig
from dlm.bench.load.figures import LoadFigures
from dlm.bench.machine.processor import load_average, processor

PLAIN_WIDTH = 200
"""Output width in columns when not on a terminal."""


def render(rows: Sequence[LoadFigures], work: LoadConfig) -> None:
    """Print everything."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    console.print(f"client: {processor()}, load {load_average():.1f}; {described(work)}")
    for title, several in groupby(rows, lambda row: row.title):
        console.print(table(title, list(several)))


def described(work: LoadConfig) -> str:
    """A description of the requests."""
    prompts = work.prompts or "random words, as many as in GSM8K's questions"
    return (
        f"{work.rounds} rounds of at most {work.requests} requests and {work.seconds:g} s; prompts: {prompts}; "
        f"{work.streamed:.0%} streamed; max_tokens {work.max_tokens}, temperature {work.temperatures}, n {work.n}, "
        f"algorithms {work.algorithms}{f', {work.fields}' if work.fields else ''}"
    )


def table(title: str, rows: Sequence[LoadFigures]) -> Table:
    """A line for each load and server; with several servers also their ratios to the first."""
    several = len({row.server for row in rows}) > 1
    shown = Table(
        title=f"{title}; latencies in s (first: to the first text of a stream), /health in ms"
        + ("; x: ratio to the first server" if several else "")
    )
    shown.add_column("load", no_wrap=True)
    shown.add_column("server", no_wrap=True)
    for column in (
        *("requests", "tokens in", "out", "requests/s", "tokens/s", "p50", "p95", "p99", "first p50", "p95"),
        *("health p99", "batch"),
        *(("requests/s x", "p50 x") if several else ()),
    ):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("errors")
    for row, over in with_ratios(rows):
        shown.add_row(
            str(row.load),
            row.server,
            str(row.requests),
            *(_number(value, ".0f") for value in (row.prompt_tokens, row.tokens)),
            _number(row.requests_per_second, ".2f"),
            _number(row.tokens_per_second, ".1f"),
            *(_number(row.latency[one], ".3f") for one in ("p50", "p95", "p99")),
            *(_number(row.first_block[one], ".3f") for one in ("p50", "p95")),
            _number(1e3 * row.health["p99"], ".1f"),
            _number(row.mean_batch, ".2f"),
            *((_number(over[one], ".2f") for one in ("requests_per_second", "latency_p50")) if several else ()),
            ", ".join(f"{status}: {count}" for status, count in row.errors.items()) or "none",
        )
    return shown


def with_ratios(rows: Sequence[LoadFigures]) -> Iterator[tuple[LoadFigures, Mapping[str, float]]]:
    """Each row with the ratios of its figures to the first server's under the same load."""
    for _, several in groupby(rows, lambda row: (row.title, row.load)):
        first, *others = several
        yield first, first.over(first)
        for one in others:
            yield one, one.over(first)


def progress(rows: Sequence[LoadFigures], seconds: float) -> str:
    """The progress line of a finished kind of load."""
    shown = "; ".join(f"{row.server} {row.requests_per_second:.2f} requests/s" for row in rows)
    return f"{rows[0].title}, {rows[0].load}: {shown} (took {seconds:.0f} s)"


def to_json(rows: Sequence[LoadFigures], work: LoadConfig) -> str:
    """All measurements, with the ratios; unknown values are null."""
    values = {
        "client": {"processor": processor(), "load": load_average()},
        "workload": asdict(work),
        "rows": [{**row.values(), "over_first": dict(over)} for row, over in with_ratios(rows)],
    }
    return json.dumps(_without_nan(values), indent=2, allow_nan=False)


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
