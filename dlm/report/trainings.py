"""Runs of `python -m dlm.rl.grpo` in a folder: their rewards, their results, and what they lack."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlm.report.runs import is_training, labels_of, overrides_of, run_folders
from dlm.runs.lock import is_locked
from dlm.runs.run_folder import RunFolder

LOG = "training.jsonl"
"""The first line describes the run; the others are steps and measurements."""
COLUMNS = (
    "run", "reward before", "reward after", "gain", "steps", "minutes", "rollout", "reward", "score", "update",
    "tokens", "NFE",
)  # fmt: skip
"""Column headers; `rollout`, `reward`, `score` and `update` are shares of the step time, `tokens` and `NFE` are per
answer in the last step."""


@dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        folder: its path.
        overrides: its command-line overrides.
        label: what distinguishes it from the others.
        rows: of `training.jsonl`, after the first; empty if the run has not got that far.
        summary: content of `summary.json`; None for an unfinished run.
        missing: what it lacks, in words; empty if nothing.
    """

    folder: Path
    overrides: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    summary: dict[str, Any] | None
    missing: tuple[str, ...]
    label: str = ""

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "reward" in row]

    @property
    def measured(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "validation_reward" in row]


def read_trainings(folder: Path) -> list[Training]:
    """Every GRPO run in `folder`, at any depth, by name."""
    found = [_read(path) for path in sorted(filter(is_training, run_folders(folder)))]
    labels = labels_of([training.overrides for training in found], [one.folder.name for one in found])
    return [replace(training, label=label) for training, label in zip(found, labels, strict=True)]


def _read(path: Path) -> Training:
    rows, missing, log, told = [], [], path / LOG, path / "summary.json"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            missing.append(f"line {number} of {LOG} is broken, as after a kill")
    summary = json.loads(told.read_text()) if told.exists() else None
    if summary is None:
        missing.append(_unfinished(path, max((row["step"] for row in rows), default=0)))
    elif not log.exists():
        missing.append(f"{LOG} is missing, so its steps are unknown")
    return Training(path, overrides_of(path), tuple(rows), summary, tuple(missing))


def _unfinished(path: Path, last: int) -> str:
    """Why a training has no summary after step `last`, and how to resume it."""
    if is_locked(path):
        return f"it is still running: {f'step {last}' if last else 'no step'} is done"
    when = f"after step {last}" if last else "before its first step"
    return f"it died or was stopped {when}; to resume: {RunFolder(path).begun_with()}"


def cells(trainings: Sequence[Training]) -> list[tuple[str, ...]]:
    """A row of strings for each finished run, in the order of `COLUMNS`; empty if a value is unknown."""
    lines = []
    for training in trainings:
        summary, steps = training.summary, training.steps
        if summary is None or not steps:
            continue
        before, after = summary["reward_before"], summary["reward_after"]
        known = before is not None
        shares = summary["share_of_step_time"]
        lines.append(
            (
                training.label,
                f"{before:.3f} ± {summary['stderr_before']:.3f}" if known else "",
                f"{after:.3f} ± {summary['stderr_after']:.3f}" if known else "",
                f"{after - before:+.3f}" if known else "",
                str(summary["steps"]),
                f"{summary['minutes']:.1f}",
                *(f"{shares[part]:.0%}" for part in ("rollout", "reward", "score", "update")),
                f"{steps[-1]['tokens']:.1f}",
                f"{steps[-1]['nfe']:.1f}",
            )
        )
    return lines


def totals(trainings: Sequence[Training]) -> dict[str, float]:
    """The report in numbers, for a logger."""
    through = [one.summary for one in trainings if one.summary is not None]
    gains = [one["reward_after"] - one["reward_before"] for one in through if one["reward_before"] is not None]
    found = {"report/runs": float(len(trainings)), "report/unfinished": float(len(trainings) - len(through))}
    return {**found, "report/least_gain": min(gains)} if gains else found
