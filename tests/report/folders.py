"""Run folders as runs leave them, without running anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlm.data.prompts import check_demo_answer
from dlm.demo.tasks import held_out
from dlm.runs.shards import to_line
from dlm.runs.summary import summarize, write_summary
from dlm.runs.totals import Totals

EXAMPLES = held_out()[:8]


def answer(number: int, *, right: bool, nfe: int, step_map: Sequence[int] | None = None) -> dict[str, Any]:
    """A row of predictions with four tokens."""
    example = EXAMPLES[number]
    row: dict[str, Any] = {
        "id": f"p{number}", "prompt": example.question, "text": example.answer if right else "wrong",
        "token_ids": [1, 2, 3, 4], "finish_reason": "stop", "nfe": nfe, "positions": 16, "seed": 1, "seconds": 0.1,
        "row": {"family": example.family},
    }  # fmt: skip
    if step_map is not None:
        row |= {"step_map": list(step_map), "canvas_ids": [1] * len(step_map), "logprobs": [-0.1] * len(step_map)}
    return row


def begun(folder: Path, *overrides: str, prompts: int = 4, done: int = 0) -> Path:
    """A run that died after `done` answers."""
    (folder / "shards").mkdir(parents=True)
    (folder / "config.yaml").write_text("algorithm: dual_cache\ndata: {_target_: dlm.data.prompts.DemoPrompts}\n")
    (folder / "command.txt").write_text(f"python -m dlm.predict {' '.join(overrides)} run_dir={folder}\n")
    ids = [f"p{number}" for number in range(prompts)]
    (folder / "index.json").write_text(json.dumps({"ids": ids, "samples": 1, "digest": "x"}))
    rows = [answer(number, right=True, nfe=2) for number in range(done)]
    (folder / "shards" / "a-rank0.jsonl").write_bytes(b"".join(map(to_line, rows)))
    return folder


def finished(folder: Path, rows: Sequence[dict[str, Any]], *overrides: str, summary: bool = True) -> Path:
    """A run with predictions."""
    begun(folder, *overrides, prompts=len(rows), done=len(rows))
    predictions = folder / "predictions.jsonl"
    predictions.write_bytes(b"".join(map(to_line, rows)))
    if summary:
        tokens, nfe = 4 * len(rows), sum(row.get("nfe", 0) for row in rows)
        totals = Totals(rows=len(rows), errors=0, tokens=tokens, nfe=nfe, seconds=2.0, occupancy=0.5)
        write_summary(folder / "summary.json", summarize(predictions, check_demo_answer), totals)
    return folder


def sweep(folder: Path) -> Path:
    """Two algorithms at two thresholds, one of which died, one without a summary and one without step maps."""
    maps = [[1, 1, 2, 2], [1, 2, 2, 1], [2, 1, 1, 2], [1, 1, 1, 2]]
    common = ("generation.record=true", "logger=wandb")
    slow = [answer(n, right=True, nfe=4, step_map=maps[n]) for n in range(4)]
    fast = [answer(n, right=n < 3, nfe=2, step_map=maps[n]) for n in range(4)]
    poor = [answer(n, right=n < 1, nfe=3) for n in range(4)]
    finished(folder / "a", slow, "algorithm=dual_cache", "sampler.threshold=0.9", *common)
    finished(folder / "b", fast, "algorithm=dual_cache", "sampler.threshold=0.5", *common)
    finished(folder / "c", poor, "algorithm=klass", "sampler.threshold=0.5", *common, summary=False)
    begun(folder / "d", "algorithm=klass", "sampler.threshold=0.9", *common, done=1)
    return folder
