"""The quality-speed table: the demo checkpoint's greedy answers to its held-out test set, by algorithm."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dlm.bench.config import QualityConfig
from dlm.bench.variants import BASELINE, Variant, variants
from dlm.decoding.algorithms import compose
from dlm.demo import CHECKPOINT
from dlm.demo.tasks import held_out
from dlm.demo.validation import BLOCK_LENGTH, GEN_LENGTH, Accuracy, measure
from dlm.models.io.loading import load_checkpoint
from dlm.text import TextCodec

PLAIN_WIDTH = 170


@dataclass(frozen=True)
class QualityRow:
    """One variant and its accuracy."""

    variant: Variant
    accuracy: Accuracy


def run_quality(work: QualityConfig, device: torch.device) -> str:
    """Decode the test set once per variant, print the table and return it as JSON."""
    checkpoint = load_checkpoint(CHECKPOINT, dtype="float32", device=device)
    codec = TextCodec.load(CHECKPOINT)
    examples = held_out() if work.per_family is None else held_out(per_family=work.per_family)
    rows = []
    for variant in variants(work.algorithms):
        attention = checkpoint.backbone.config.attention
        engine, sampler = compose(variant.algorithm, variant.options, family=checkpoint.family, attention=attention)
        parts = checkpoint.backbone, checkpoint.special, codec, examples
        accuracy = measure(*parts, engine=engine, sampler=sampler, steps=variant.steps)
        rows.append(QualityRow(variant, accuracy))
        print(f"{variant}: {accuracy.overall:.1%} exact, {accuracy.forwards:.1f} forwards", file=sys.stderr, flush=True)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    console.print(
        f"demo checkpoint, {len(examples)} test prompts, gen_length {GEN_LENGTH}, block_length {BLOCK_LENGTH}, "
        f"temperature 0, {checkpoint.backbone.dtype}"
    )
    console.print(quality_table(rows))
    return json.dumps({"prompts": len(examples), "rows": [row_values(row, rows[0]) for row in rows]}, indent=2)


def quality_table(rows: Sequence[QualityRow]) -> Table:
    """The printed table; the first row is the baseline."""
    table = Table(
        title="forwards: mean per answer (NFE); per forward: positions decided, and answer tokens before the end\n"
        f"vs: points of exact match above {BASELINE}; times: forwards relative to it"
    )
    table.add_column("algorithm")
    for column in ("exact match", "vs", "forwards", "times", "decided/forward", "tokens/forward"):
        table.add_column(column, justify="right")
    for row in rows:
        values = row_values(row, rows[0])
        table.add_row(
            str(row.variant),
            f"{row.accuracy.overall:.1%}",
            f"{100 * values['exact_match_gain']:+.1f}",
            f"{row.accuracy.forwards:.2f}",
            f"{values['forwards_ratio']:.2f}",
            f"{row.accuracy.decided_per_forward:.2f}",
            f"{row.accuracy.tokens_per_forward:.2f}",
        )
    return table


def row_values(row: QualityRow, baseline: QualityRow) -> dict[str, Any]:
    """One row as plain values: shares, means over the answers, and changes from the baseline."""
    accuracy = row.accuracy
    return {
        "variant": str(row.variant),
        **asdict(row.variant),
        "exact_match": accuracy.overall,
        "families": accuracy.families,
        "forwards": accuracy.forwards,
        "decided_per_forward": accuracy.decided_per_forward,
        "tokens_per_forward": accuracy.tokens_per_forward,
        "exact_match_gain": accuracy.overall - baseline.accuracy.overall,
        "forwards_ratio": accuracy.forwards / baseline.accuracy.forwards,
    }
