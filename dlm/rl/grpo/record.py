"""The files of a run folder: `training.jsonl`, `answers.jsonl`, `summary.json`, and the state to resume from.

`training.jsonl` starts with a header line that says what was run, followed by one line per step and one per validation
(`validation_reward`); `answers.jsonl` holds the answers of the validations.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dlm.errors import RunError
from dlm.rl.grpo.module import PARTS
from dlm.runs.summary import read_summary
from dlm.runs.whole_files import publish, replace


@dataclass(frozen=True)
class Record:
    """Paths and files of a run; only one process writes them."""

    folder: Path

    @property
    def training(self) -> Path:
        return self.folder / "training.jsonl"

    @property
    def answers(self) -> Path:
        return self.folder / "answers.jsonl"

    @property
    def state(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def checkpoint(self) -> Path:
        """Folder of the trained model, in its family's format."""
        return self.folder / "checkpoint"

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapter, in PEFT's format, if one was trained instead of the weights."""
        return self.folder / "adapter"

    def begin(self, header: dict[str, Any], step: int | None) -> None:
        """Write the header, and drop the lines after `step` (None: all steps), because those steps will be repeated."""
        publish(self.training, json.dumps(header) + "\n")
        for path in (self.training, self.answers):
            if path.exists():
                kept = [line for line in path.read_bytes().splitlines(keepends=True) if _stands(line, step)]
                replace(path, kept)

    def append(self, path: Path, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows to a file. Raises `RunError` if it cannot be written."""
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}; make room") from error

    def keep(self, state: dict[str, Any]) -> None:
        """Atomically replace the last state. Raises `RunError` if it cannot be written."""
        draft = self.state.with_suffix(".draft")
        try:
            torch.save(state, draft)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(self.state)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            draft.unlink(missing_ok=True)
            raise RunError(f"cannot write {self.state} ({error}); make room") from error

    def kept(self) -> dict[str, Any] | None:
        """The state to resume from, on the host; None for a new run. Its tensors are memory-mapped and read on use.

        Raises:
            RunError: it cannot be read.
        """
        if not self.state.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch's reader can raise anything on corrupt bytes
            raise RunError(
                f"{self.state} cannot be read ({type(error).__name__}: {error}); remove it to start over"
            ) from error
        return state

    def steps_kept(self) -> int:
        """The step of the state; 0 for a new run. Raises `RunError` if it cannot be read."""
        state = self.kept()
        return 0 if state is None else int(state["step"])

    def rows(self) -> list[dict[str, Any]]:
        """The lines of `training.jsonl` after the header."""
        return [json.loads(line) for line in self.training.read_text(encoding="utf-8").splitlines()[1:]]

    def through(self, steps: int) -> bool:
        """Whether a run of at least this many steps was completed."""
        made = read_summary(self.summary).get("steps")
        return isinstance(made, int) and made >= steps

    def save(self, path: Path, write: Callable[[Path], None]) -> None:
        """Have `write` fill a draft folder, then replace `path` with it. Raises `RunError` if it cannot be written."""
        draft = path.with_name(f".{path.name}")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            write(draft)
            shutil.rmtree(path, ignore_errors=True)
            draft.rename(path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise RunError(f"cannot write {path} ({error}); make room") from error

    def conclude(self, seconds: float) -> dict[str, Any]:
        """Write `summary.json` and return its contents."""
        summary = summary_of(self.rows(), seconds)
        replace(self.summary, [json.dumps(summary, indent=2).encode() + b"\n"])
        return summary


def summary_of(rows: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Summary of a run: first and last validation, duration, and how the time was spent.

    Args:
        rows: lines of `training.jsonl` after the header.
        seconds: duration of the run, including loading and validation.
    """
    measured = [row for row in rows if "validation_reward" in row]
    steps = [row for row in rows if "reward" in row]
    spent = {part: sum(row[f"seconds_{part}"] for row in steps) for part in PARTS}
    total = sum(spent.values())
    return {
        "steps": len(steps),
        "minutes": round(seconds / 60, 2),
        "reward_before": measured[0]["validation_reward"] if measured else None,
        "reward_after": measured[-1]["validation_reward"] if measured else None,
        "stderr_before": measured[0]["validation_stderr"] if measured else None,
        "stderr_after": measured[-1]["validation_stderr"] if measured else None,
        "share_of_step_time": {part: round(value / total, 3) if total else None for part, value in spent.items()},
        "answers_not_judged": round(sum(row["not_judged"] for row in rows)),
    }


def _stands(line: bytes, step: int | None) -> bool:
    """Whether a line is kept: the header, or one up to `step`. A killed process can leave half a line, which is not."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(row, dict):
        return False
    return "step" not in row or (step is not None and row["step"] <= step)
