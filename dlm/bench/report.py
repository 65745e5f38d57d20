"""Tables and JSON of timed workloads. Independent of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from dlm.bench.config import SpeedConfig
from dlm.bench.machine.facts import Machine
from dlm.bench.row import Against, Row, row_values

PLAIN_WIDTH = 170
"""Output width in columns when not on a terminal."""

GOAL = 0.8
"""Share of the ceiling that a row should reach."""


def render(rows: Sequence[Row], facts: Machine, work: SpeedConfig, parameters: Mapping[str, int]) -> None:
    """Print everything; `parameters` counts those of the body, by model size."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    peaks = ", ".join(f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in facts.matmul_flops.items())
    bodies = ", ".join(f"{size} ({count / 1e6:.1f}M in the body)" for size, count in parameters.items())
    console.print(
        f"{facts.processor}, device {facts.device}, {facts.threads} threads, load {facts.load:.1f}, {facts.clock} clock"
    )
    console.print(f"torch {facts.torch}; matmul {peaks}; memory {facts.memory_bytes / 1e9:.1f} GB/s")
    console.print(
        f"random models {bodies}; block_length {work.block_length}, {work.blocks} block(s) decoded per canvas; "
        "batch 1: prompt + answer lengths as shown; larger: GSM8K-like prompts"
    )
    console.print(speed_table(rows))
    compared = [(row, row.against) for row in rows if row.against is not None]
    if compared:
        console.print(reference_table(compared))
        console.print(ceiling_table(compared))
    for row in rows:
        if row.profile is not None:
            console.print(profile_table(row, row.profile))
    for line in shortfalls(rows, work.peak_goal):
        console.print(line)


def shortfalls(rows: Sequence[Row], peak_goal: float | None) -> list[str]:
    """A line for each row that misses a goal."""
    found = []
    for row in rows:
        hint = "" if row.profile is not None else "; profile=true shows where the time goes"
        if row.share is not None and row.share < GOAL:
            found.append(f"{row.case}: {row.share:.0%} of the ceiling, under {GOAL:.0%}{hint}")
        if peak_goal is not None and row.peak_share < peak_goal:
            found.append(f"{row.case}: {row.peak_share:.0%} of the matmul peak, under {peak_goal:.0%}{hint}")
    return found


def speed_table(rows: Sequence[Row]) -> Table:
    """Our decoder's figures, for every row."""
    table = _table("ours; memory: peak above the weights; floor: all operations and bytes at the machine's peak")
    for column in (
        *("rounds", "nfe", "ms/forward", "forwards/s", "positions/s", "tokens/s", "memory MiB"),
        *("of floor", "of matmul peak"),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            *_head(row),
            f"{row.rounds}",
            f"{row.nfe:.4g}",
            f"{1e3 * row.seconds / row.forwards:,.1f}",
            f"{row.forwards / row.seconds:.2f}",
            f"{row.positions / row.seconds:,.0f}",
            f"{row.tokens / row.seconds:.1f}",
            "" if row.memory is None else f"{row.memory / 2**20:,.0f}",
            f"{row.floor_share:.0%}",
            f"{row.peak_share:.0%}",
        )
    return table


def reference_table(rows: Sequence[tuple[Row, Against]]) -> Table:
    """Both sides, for the same tokens."""
    table = _table("ours and the reference (ref) on the same schedule, medians of interleaved rounds")
    for column in ("s", "ref s", "nfe", "ref", "forwards/s", "ref", "positions/s", "ref", "tokens/s", "ref", "same"):
        table.add_column(column, justify="right")
    for row, other in rows:
        table.add_row(
            *_head(row),
            f"{row.seconds:.3f}",
            f"{other.seconds:.3f}",
            f"{row.nfe:.4g}",
            f"{other.forwards / row.case.batch:.4g}",
            f"{row.forwards / row.seconds:.2f}",
            f"{other.forwards / other.seconds:.2f}",
            f"{row.positions / row.seconds:,.0f}",
            f"{other.positions / other.seconds:,.0f}",
            f"{row.tokens / row.seconds:.1f}",
            f"{row.tokens / other.seconds:.1f}",
            f"{other.same_tokens:.0%}",
        )
    return table


def ceiling_table(rows: Sequence[tuple[Row, Against]]) -> Table:
    """The ratio, its ceiling, and how close each side is to its own ideal."""
    table = _table("ratio = ref s / s; ceiling = ref ideal s / ideal s; reached = ratio / ceiling")
    for column in ("ratio", "ceiling", "reached", "ideal s", "of s", "ref ideal s", "of ref s"):
        table.add_column(column, justify="right")
    for row, other in rows:
        ideal, reference_ideal = other.ideal.total, other.reference_ideal.total
        table.add_row(
            *_head(row),
            f"{row.ratio:.2f}",
            f"{other.ceiling:.2f}",
            f"{row.share:.0%}",
            f"{ideal:.3f}",
            f"{ideal / row.seconds:.0%}",
            f"{reference_ideal:.3f}",
            f"{reference_ideal / other.seconds:.0%}",
        )
    return table


def profile_table(row: Row, seconds: dict[str, float]) -> Table:
    """Our time by part, next to the ideal of each part that has one."""
    table = Table(title=f"where our time goes: {row.case}")
    for column in ("part", "s", "share", "ideal s"):
        table.add_column(column, justify="left" if column == "part" else "right")
    total = sum(seconds.values())
    ideal = row.against.ideal if row.against else None
    for part, spent in seconds.items():
        needed = getattr(ideal, part, None)
        table.add_row(part, f"{spent:.3f}", f"{spent / total:.0%}", "" if needed is None else f"{needed:.3f}")
    table.add_row("all", f"{total:.3f}", "100%", "" if ideal is None else f"{ideal.total:.3f}")
    return table


def _table(title: str) -> Table:
    table = Table(title=title)
    for column in ("engine", "sampler", "batch", "lengths", "dtype"):
        table.add_column(column, no_wrap=True)
    return table


def _head(row: Row) -> tuple[str, ...]:
    case = row.case
    return case.engine, case.sampler, str(case.batch), f"{case.prompt_length}+{case.gen_length}", case.dtype


def to_json(rows: Sequence[Row], facts: Machine, work: SpeedConfig, parameters: Mapping[str, int]) -> str:
    """All measurements and derived figures."""
    return json.dumps(
        {
            "machine": asdict(facts),
            "workload": {**asdict(work), "body_parameters": dict(parameters)},
            "rows": [row_values(row) for row in rows],
        },
        indent=2,
    )
