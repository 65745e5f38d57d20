"""The table and the JSON. Knows no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from dlm.bench.ceiling import Seconds
from dlm.bench.config import WorkloadConfig
from dlm.bench.machine import Machine
from dlm.bench.row import Row

PLAIN_WIDTH = 150
"""Columns where the output is no terminal."""

GOAL = 0.8
"""Share of the ceiling that a row should reach."""


def render(rows: Sequence[Row], facts: Machine, work: WorkloadConfig, parameters: int) -> None:
    """Print everything."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    peaks = ", ".join(f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in facts.matmul_flops.items())
    console.print(
        f"{facts.processor}, device {facts.device}, {facts.threads} threads, load {facts.load:.1f}, {facts.clock} clock"
    )
    console.print(f"torch {facts.torch}; matmul {peaks}; memory {facts.memory_bytes / 1e9:.1f} GB/s")
    console.print(
        f"model {work.size}: {parameters / 1e6:.1f}M body parameters, random; gen_length {work.gen_length}, "
        f"block_length {work.block_length}, {work.blocks} block(s) decoded; batch 1: prompt of {work.prompt_length}, "
        f"more: GSM8K-like lengths; the reference decodes the same prompts one by one"
    )
    console.print(speed_table(rows))
    console.print(ceiling_table(rows))
    for row in rows:
        if row.profile is not None:
            console.print(profile_table(row, row.profile))
    short = [row for row in rows if row.share < GOAL]
    for row in short:
        hint = "" if row.profile is not None else "; profile=true shows what binds"
        console.print(f"{name_of(row)}: {row.share:.0%} of the ceiling, under {GOAL:.0%}{hint}")


def name_of(row: Row) -> str:
    """A row in words."""
    return f"{row.case.engine}, batch {row.case.batch}, {row.case.dtype}"


def speed_table(rows: Sequence[Row]) -> Table:
    """What each side did a second."""
    table = _table("ours and the reference (ref), medians of interleaved rounds", rows)
    for column in ("rounds", "nfe", "s", "ref s", "forwards/s", "ref", "positions/s", "ref", "tokens/s", "ref", "same"):
        table.add_column(column, justify="right")
    for row in rows:
        mine, other = row.seconds, row.reference_seconds
        table.add_row(
            *_head(row),
            f"{row.rounds}",
            f"{row.case.nfe}",
            f"{mine:.3f}",
            f"{other:.3f}",
            f"{row.forwards / mine:.2f}",
            f"{row.reference_forwards / other:.2f}",
            f"{row.positions / mine:,.0f}",
            f"{row.positions / other:,.0f}",
            f"{row.case.tokens / mine:.1f}",
            f"{row.case.tokens / other:.1f}",
            f"{row.same_tokens:.0%}",
        )
    return table


def ceiling_table(rows: Sequence[Row]) -> Table:
    """The ratio, what it could be, and how near each side is to its own ideal."""
    table = _table("ratio = ref s / s; ceiling = ref ideal / ideal; floor = all weights and operations at peak", rows)
    for column in ("ratio", "ceiling", "share", "ideal s", "of s", "ref ideal s", "of ref s", "floor s", "of s"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            *_head(row),
            f"{row.ratio:.2f}",
            f"{row.ceiling:.2f}",
            f"{row.share:.0%}",
            f"{row.ideal.total:.3f}",
            f"{row.ideal.total / row.seconds:.0%}",
            f"{row.reference_ideal.total:.3f}",
            f"{row.reference_ideal.total / row.reference_seconds:.0%}",
            f"{row.floor:.3f}",
            f"{row.floor / row.seconds:.0%}",
        )
    return table


def profile_table(row: Row, seconds: dict[str, float]) -> Table:
    """Our time by part beside the ideal of each part."""
    table = Table(title=f"where our time goes: {name_of(row)}")
    for column in ("part", "s", "share", "ideal s"):
        table.add_column(column, justify="left" if column == "part" else "right")
    total = sum(seconds.values())
    for part, spent in seconds.items():
        needed = getattr(row.ideal, part, None)
        table.add_row(part, f"{spent:.3f}", f"{spent / total:.0%}", "" if needed is None else f"{needed:.3f}")
    table.add_row("all", f"{total:.3f}", "100%", f"{row.ideal.total:.3f}")
    return table


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title)
    for column in ("engine", "batch", "dtype"):
        table.add_column(column)
    return table


def _head(row: Row) -> tuple[str, str, str]:
    return row.case.engine, str(row.case.batch), row.case.dtype


def to_json(rows: Sequence[Row], facts: Machine, work: WorkloadConfig, parameters: int) -> str:
    """Everything that was measured, with what follows from it."""
    return json.dumps(
        {
            "machine": asdict(facts),
            "workload": {**asdict(work), "body_parameters": parameters},
            "rows": [row_values(row) for row in rows],
        },
        indent=2,
    )


def row_values(row: Row) -> dict[str, Any]:
    """One row as plain values; seconds, and rates a second."""

    def parts(seconds: Seconds) -> dict[str, float]:
        return {**asdict(seconds), "total": seconds.total}

    return {
        "engine": row.case.engine,
        "batch": row.case.batch,
        "dtype": row.case.dtype,
        "prompt_lengths": [len(prompt) for prompt in row.case.prompts],
        "rounds": row.rounds,
        "nfe": row.case.nfe,
        "positions": row.positions,
        "tokens": row.case.tokens,
        "seconds": row.seconds,
        "reference_seconds": row.reference_seconds,
        "forwards": row.forwards,
        "reference_forwards": row.reference_forwards,
        "forwards_per_second": row.forwards / row.seconds,
        "reference_forwards_per_second": row.reference_forwards / row.reference_seconds,
        "positions_per_second": row.positions / row.seconds,
        "reference_positions_per_second": row.positions / row.reference_seconds,
        "tokens_per_second": row.case.tokens / row.seconds,
        "reference_tokens_per_second": row.case.tokens / row.reference_seconds,
        "same_tokens": row.same_tokens,
        "ratio": row.ratio,
        "ceiling": row.ceiling,
        "share": row.share,
        "ideal": parts(row.ideal),
        "reference_ideal": parts(row.reference_ideal),
        "floor_seconds": row.floor,
        "profile": row.profile,
    }
