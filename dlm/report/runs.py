"""The runs in a folder, and what they lack.

A run is a folder with the `config.yaml` that predict and evaluate write; trainings are read by `trainings.py`. Its
figures come from `summary.json` or, if that is missing, from `predictions.jsonl`. What a run lacks is described in
words and does not keep the others from being reported.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dlm.data.prompts import check_of
from dlm.distributed.heartbeat import STATUS
from dlm.errors import RunError
from dlm.runs.other_starts import at_work
from dlm.runs.run_folder import RunFolder
from dlm.runs.shards import read_answers
from dlm.runs.summary import summarize

TRAINING_KEYS = frozenset({"reward", "likelihood", "objective"})
"""Keys that only the configuration of a training has."""
MAPS = 2000
"""Step maps read per run; more would not change the plot."""
INSIDE = ("wandb", "shards", "claims")
"""Folders that hold no runs, although W&B keeps its own `config.yaml` there."""
WITHOUT_EFFECT = ("run_dir", "logger", "trainer", "progress", "decoder", "trace")
"""Overrides that change no answer, so they do not distinguish runs."""


@dataclass(frozen=True)
class Figures:
    """A run in numbers; None if unknown.

    Attributes:
        accuracy: share of right answers, 0..1.
        checked: number of answers it is a share of.
        answers, errors: prompts' samples with and without an answer.
        mean_nfe: forwards per answer.
        tokens_per_forward, tokens_per_second: visible tokens.
        scores: accuracy by task or family.
    """

    accuracy: float | None = None
    checked: int | None = None
    answers: int | None = None
    errors: int | None = None
    mean_nfe: float | None = None
    tokens_per_forward: float | None = None
    tokens_per_second: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: its path.
        name: its path relative to the folder of runs.
        overrides: command-line overrides, `key=value`, that change answers.
        label: what distinguishes it from the others.
        group: the part of the label without numbers: runs of one group differ in a number, such as a threshold.
        numbers: the numbers of the label.
        varied: the keys of these numbers.
        figures: of its answers.
        nfe: forwards of each answer.
        step_maps: of each answer with one, at most `MAPS`: by position the forward that revealed it, 0 for none.
        missing: what it lacks, in words; empty if nothing.
        whole: all its prompts are answered or refused.
    """

    folder: Path
    name: str
    overrides: tuple[str, ...]
    label: str = ""
    group: str = ""
    numbers: tuple[str, ...] = ()
    varied: tuple[str, ...] = ()
    figures: Figures = Figures()
    nfe: tuple[int, ...] = ()
    step_maps: tuple[tuple[int, ...], ...] = ()
    missing: tuple[str, ...] = ()
    whole: bool = False


def read_runs(folder: Path) -> list[Run]:
    """Every run in `folder`, at any depth, by name.

    Raises:
        RunError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise RunError(f"runs={folder}: no such folder; set runs=<folder>, for instance outputs/predict")
    found = [path for path in run_folders(folder) if not is_training(path)]
    if not found:
        raise RunError(f"runs={folder} holds no run: none of its folders has a config.yaml written by predict")
    return labelled([_read(path, "." if path == folder else str(path.relative_to(folder))) for path in sorted(found)])


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders of runs in `folder`, at any depth."""
    for place, names, files in os.walk(folder):
        if "config.yaml" in files:
            yield Path(place)
            names.clear()
        names[:] = [name for name in names if name not in INSIDE and not name.startswith(".")]


def is_training(path: Path) -> bool:
    """Whether a run's folder is that of a training, which has no predictions.

    Decided by its configuration, which exists before the first step. It is not parsed: it may be another program's.
    """
    lines = (path / "config.yaml").read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.partition(":")[0] for line in lines} >= TRAINING_KEYS


def _read(path: Path, name: str) -> Run:
    folder, overrides = RunFolder(path), overrides_of(path)
    if not folder.predictions.is_file():
        return Run(path, name, overrides, missing=(_unfinished(folder),))
    missing: list[str] = []
    nfe: list[int] = []
    step_maps: list[tuple[int, ...]] = []
    try:
        for row in _rows(folder.predictions):
            if "error" in row:
                continue
            nfe.append(row["nfe"])
            if "step_map" in row and len(step_maps) < MAPS:
                step_maps.append(tuple(row["step_map"]))
        figures = _figures(folder, missing)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        broken = f"{folder.predictions.name} cannot be read ({type(error).__name__}: {error}): merge the run again"
        return Run(path, name, overrides, missing=(broken,))
    return Run(
        folder=path,
        name=name,
        overrides=overrides,
        figures=figures,
        nfe=tuple(nfe),
        step_maps=tuple(step_maps),
        missing=tuple(missing),
        whole=True,
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _figures(folder: RunFolder, missing: list[str]) -> Figures:
    """Figures from `summary.json`; those it lacks come from the predictions."""
    told: dict[str, Any] = {}
    if not folder.summary.exists():
        missing.append(
            "no summary.json: the figures come from predictions.jsonl, and tokens/s is unknown; to resume: "
            f"{folder.begun_with()}"
        )
    else:
        try:
            told = dict(json.loads(folder.summary.read_text()))
        except (TypeError, ValueError, RecursionError) as error:
            missing.append(f"summary.json is broken ({error}): the figures come from predictions.jsonl")
    counted = summarize(folder.predictions, check_of(folder.data_target()))
    own = Figures(
        accuracy=counted.exact_match,
        checked=counted.checked.total() or None,
        answers=counted.answers,
        errors=counted.errors,
        mean_nfe=counted.mean_nfe,
        tokens_per_forward=counted.tokens_per_forward,
        scores={name: counted.right[name] / count for name, count in sorted(counted.checked.items())},
    )
    names = {one.name for one in fields(Figures)} - {"accuracy"}
    said = {name: told[name] for name in names if told.get(name) is not None}
    if told.get("exact_match") is not None:
        said["accuracy"] = told["exact_match"]
    known = replace(own, **said)
    if known.accuracy is None:
        missing.append("no accuracy: its answers were not checked")
    return known


def _unfinished(folder: RunFolder) -> str:
    """Why there are no predictions, how far the run got and how to resume it."""
    resume = folder.begun_with()
    if not folder.index.exists():
        return f"it died before its prompts were read; to restart: {resume}"
    try:
        index = folder.read_index()
        done = len(index.ids) - len(read_answers(folder.shard_files(), index.samples).missing(index.ids))
    except RunError as error:
        return str(error)
    far = f"{done} of {len(index.ids)} prompts are answered"
    if any(at_work(path) is not None for path in folder.path.glob(f"claims/*/*{STATUS}")):
        return f"it is still running: {far}"
    return f"it died or was stopped: {far}; to resume: {resume}"


def overrides_of(path: Path) -> tuple[str, ...]:
    """Overrides in `command.txt` that change answers."""
    command = path / "command.txt"
    try:
        words = shlex.split(command.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged
        words = []
    return tuple(
        word
        for word in words
        if "=" in word and not word.startswith("-") and word.split("=")[0].split(".")[0] not in WITHOUT_EFFECT
    )


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with their labels, groups and numbers."""
    labels = labels_of([run.overrides for run in runs], [run.name for run in runs])
    common = _common([run.overrides for run in runs])
    named = []
    for run, label in zip(runs, labels, strict=True):
        words = [word for word in run.overrides if word not in common]
        pairs = [word.partition("=")[::2] for word in words]
        told = [(key, value) for key, value in pairs if _is_number(value)]
        group = " ".join(word for word, (_, value) in zip(words, pairs, strict=True) if not _is_number(value))
        numbers, varied = tuple(value for _, value in told), tuple(key for key, _ in told)
        named.append(replace(run, label=label, group=group or "all", numbers=numbers, varied=varied))
    return named


def labels_of(overrides: Sequence[Sequence[str]], names: Sequence[str]) -> list[str]:
    """Labels that distinguish runs: the overrides that not all of them have, plus the name if several runs share
    these."""
    common = _common(overrides)
    own = [[word for word in words if word not in common] for words in overrides]
    labels = []
    for words, name in zip(own, names, strict=True):
        label = " ".join(words) or name
        labels.append(f"{label} ({name})" if words and own.count(words) > 1 else label)
    return labels


def _common(overrides: Sequence[Sequence[str]]) -> set[str]:
    return set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
