"""`trace.html`: how the answers of a run were revealed, as one file that opens in a browser without a server.

The canvas, its colours and its replay are those of the server's page, which follows the same events live. A step map
records only which forward wrote a position's final token: earlier tokens that were taken back are not shown, and
positions inserted later are shown from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.decoding.request import Request
    from dlm.text import TextCodec

NO_MASK = -1
"""Replaces the mask id when only the layout is needed; no prompt contains it."""


@dataclass(frozen=True)
class HtmlTrace:
    """Writes the page.

    Attributes:
        prompts: at most this many prompts, the first ones, each with all its samples.
    """

    prompts: int = 20

    def faults(self) -> list[str]:
        """Invalid values, each with its remedy."""
        return [] if self.prompts >= 1 else [f"trace.prompts={self.prompts}: must be at least 1, or set trace=none"]

    def write(
        self,
        path: Path,
        rows: Iterable[dict[str, Any]],
        codec: TextCodec,
        request: Callable[[tuple[int, ...]], Request],
    ) -> None:
        """Write the page of the first answers.

        Args:
            path: the output file.
            rows: predictions, in input order; those without a step map, such as refused prompts, are only counted.
            codec: the run's tokenizer.
            request: from a prompt's tokens, the request that was decoded.

        Raises:
            RunError: no space for the page.
        """
        from dlm.report.assets import render
        from dlm.runs.whole_files import replace

        first = [list(several) for _, several in islice(groupby(rows, lambda row: row["id"]), self.prompts)]
        shown = [row for several in first for row in several]
        answers = [answer_of(row, codec, request) for row in shown if "step_map" in row]
        page = render(
            "trace.html.jinja",
            name=path.parent.name,
            answers=answers,
            prompts=len(first),
            without=len(shown) - len(answers),
        )
        replace(path, [page.encode()])


def answer_of(row: dict[str, Any], codec: TextCodec, request: Callable[[tuple[int, ...]], Request]) -> dict[str, Any]:
    """The page's data for one row of predictions."""
    ids = codec.encode(row["prompt"])
    asked = request(ids)
    names = f"{asked.engine.name}, {asked.sampler.name}"
    return {
        "prompt": row["prompt"] if isinstance(row["prompt"], str) else _conversation(row["prompt"]),
        "text": row["text"],
        "algorithm": names + (f", sample {row['sample'] + 1}" if "sample" in row else ""),
        "finish_reason": row["finish_reason"],
        "tokens": len(row["token_ids"]),
        "events": list(events_of(row, len(ids), layout_of(asked), codec)),
    }


def layout_of(request: Request) -> dict[str, int]:
    """Lengths of the first block after the prompt and of the others."""
    from dlm.decoding.canvas import Canvas
    from dlm.outputs import opening

    return opening(Canvas(request, 0, 0, NO_MASK))


def events_of(
    row: dict[str, Any], prompt_tokens: int, layout: dict[str, int], codec: TextCodec
) -> Iterator[dict[str, Any]]:
    """A row as the events that the server sends for an answer: `start`, a `step` for each forward that revealed
    something, `end`."""
    step_map, nfe = row["step_map"], row["nfe"]
    first, others = layout["first_block"], layout["block_length"]
    yield {
        "event": "start",
        "gen_length": len(step_map),
        "first_block": first,
        "block_length": others,
        "prompt_tokens": prompt_tokens,
        "seed": str(row["seed"]),  # JavaScript would round it
    }
    order = sorted((step, position) for position, step in enumerate(step_map) if step > 0)
    for step, several in groupby(order, lambda one: one[0]):
        positions = [position for _, position in several]
        yield {
            "event": "step",
            "step": step,
            "block": 0 if positions[0] < first else 1 + (positions[0] - first) // others,
            "revealed": [
                [position, codec.piece(row["canvas_ids"][position]), _confidence(row["logprobs"][position])]
                for position in positions
            ],
        }
    tokens, seconds = len(row["token_ids"]), row["seconds"]
    yield {
        "event": "end",
        "nfe": nfe,
        "tokens_per_forward": tokens / nfe if nfe else 0.0,
        "tokens_per_second": tokens / seconds if seconds > 0 else None,
        "seconds": seconds,
    }


def _confidence(logprob: float | None) -> float:
    """The probability of a token when it was revealed; 0 if there is none."""
    return 0.0 if logprob is None else round(math.exp(logprob), 4)


def _conversation(messages: list[dict[str, str]]) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
