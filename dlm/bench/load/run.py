"""The measurement: for each kind of load and each round, one server after the other with the same requests."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlm.bench.config import BenchConfig
from dlm.bench.load.bodies import arrivals, bodies, read_prompts
from dlm.bench.load.config import ALL, LoadConfig
from dlm.bench.load.drive import LoadPlan, Round, drive
from dlm.bench.load.figures import LoadFigures
from dlm.bench.load.report import progress, render, to_json
from dlm.bench.load.servers import running
from dlm.bench.load.target import OK, LoadTarget
from dlm.errors import RunError


def run_load(bench: BenchConfig) -> int:
    """Load the servers, print the tables, write the JSON; returns the exit code.

    Raises:
        DataError: the prompts file cannot be used.
        RunError: a server cannot be started, does not answer, or cannot run the algorithms.
    """
    work: LoadConfig = bench.workload
    rows: list[LoadFigures] = []
    if bench.compare is None:
        targets = [LoadTarget.at(url) for url in bench.urls()]
        rows += measure(work, ", ".join(dict.fromkeys(target.model for target in targets)), targets)
    else:
        for title, model in bench.compare.models.items():
            with running(model, bench.compare.servers) as targets:
                rows += measure(work, title, targets)
    render(rows, work)
    if bench.json is not None:
        Path(bench.json).write_text(to_json(rows, work), encoding="utf-8")
    return 0


def measure(work: LoadConfig, title: str, targets: Sequence[LoadTarget]) -> list[LoadFigures]:
    """The rows of one table: each kind of load, each server."""
    prompts, algorithms = read_prompts(work), algorithms_of(work, targets)
    loads = [LoadPlan(clients=count) for count in work.concurrency]
    loads += [LoadPlan(rate=rate, burst=burst) for rate in work.rates for burst in work.bursts]
    for target in targets:
        _warm_up(work, target, bodies(work, prompts, algorithms, -1, 0)[: work.warmup])
    rows: list[LoadFigures] = []
    for number, load in enumerate(loads):
        begun = time.perf_counter()
        rounds: dict[str, list[Round]] = {target.name: [] for target in targets}
        for turn in range(work.rounds):
            sent = bodies(work, prompts, algorithms, number, turn)
            draw = random.Random(f"{work.seed}/{number}/{turn}/due")
            due = [] if load.clients else arrivals(load.rate, load.burst, len(sent), draw)
            for target in targets if turn % 2 == 0 else reversed(targets):
                one = drive(target, load, sent, due, seconds=work.seconds, timeout=work.timeout)
                rounds[target.name].append(one)
        rows += [LoadFigures.of(title, load, target.name, rounds[target.name]) for target in targets]
        print(progress(rows[-len(targets) :], time.perf_counter() - begun), file=sys.stderr, flush=True)
    return rows


def algorithms_of(work: LoadConfig, targets: Sequence[LoadTarget]) -> list[str]:
    """The algorithms to draw from, `all` expanded. Raises `RunError` for `all` if the servers report none in common."""
    listed = [target.algorithms for target in targets if target.algorithms]
    shared = [name for name in (listed[0] if listed else ()) if all(name in one for one in listed)]
    if ALL in work.algorithms and not shared:
        raise RunError("workload.algorithms=[all]: the servers report no common algorithms; name some instead")
    return [name for one in work.algorithms for name in (shared if one == ALL else [one])]


def _warm_up(work: LoadConfig, target: LoadTarget, sent: list[dict[str, Any]]) -> None:
    """Send uncounted requests. Raises `RunError` if all of them fail, as the others would too."""
    if not sent:
        return
    one = drive(target, LoadPlan(clients=len(sent)), sent, [], seconds=work.seconds, timeout=work.timeout)
    if not any(answer.status == OK for answer in one.answers):
        said = "; ".join(sorted({f"{answer.status}: {answer.message[:300]}" for answer in one.answers}))
        raise RunError(f"{target.url} answered none of the {len(sent)} warm-up requests: {said}")
