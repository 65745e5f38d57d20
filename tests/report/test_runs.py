"""What a folder of runs holds, and what it lacks."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from dlm.distributed.heartbeat import WorkerStatus
from dlm.distributed.processes import machine, process_birth
from dlm.errors import RunError
from dlm.report.runs import read_runs
from tests.report.folders import answer, begun, finished, sweep


def test_runs_are_labelled_by_what_differs(tmp_path: Path) -> None:
    runs = read_runs(sweep(tmp_path))
    assert [run.label for run in runs] == [
        "algorithm=dual_cache sampler.threshold=0.9",
        "algorithm=dual_cache sampler.threshold=0.5",
        "algorithm=klass sampler.threshold=0.5",
        "algorithm=klass sampler.threshold=0.9",
    ]
    assert [run.group for run in runs] == ["algorithm=dual_cache"] * 2 + ["algorithm=klass"] * 2
    assert [run.numbers for run in runs] == [("0.9",), ("0.5",), ("0.5",), ("0.9",)]


def test_figures_come_from_the_summary_and_else_from_the_predictions(tmp_path: Path) -> None:
    _, fast, poor, _ = read_runs(sweep(tmp_path))
    assert (fast.figures.accuracy, fast.figures.checked, fast.figures.tokens_per_forward) == (0.75, 4, 2.0)
    assert fast.figures.tokens_per_second == 8.0
    assert fast.nfe == (2, 2, 2, 2)
    assert fast.step_maps[1] == (1, 2, 2, 1)
    assert (poor.figures.accuracy, poor.figures.mean_nfe, poor.figures.tokens_per_second) == (0.25, 3.0, None)
    assert poor.step_maps == ()


def test_what_a_run_lacks_is_said_with_the_way_on(tmp_path: Path) -> None:
    slow, _, poor, dead = read_runs(sweep(tmp_path))
    assert slow.missing == ()
    assert "no summary.json" in poor.missing[0]
    assert poor.whole
    assert not dead.whole
    assert "it died or was stopped: 1 of 4 prompts are answered; to resume: python -m dlm.predict" in dead.missing[0]


def test_a_run_that_goes_on_is_not_called_dead(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", done=3)
    (run / "claims" / "a").mkdir(parents=True)
    mark = run / "claims" / "a" / "rank0.status.json"
    status = WorkerStatus("rank0", machine(), os.getpid(), process_birth(os.getpid()), state="running")
    mark.write_text(json.dumps(asdict(status)))
    assert read_runs(tmp_path)[0].missing == ("it is still running: 3 of 4 prompts are answered",)
    mark.write_text(json.dumps(asdict(status) | {"birth": "another"}))
    assert "it died" in read_runs(tmp_path)[0].missing[0]
    mark.write_text('{"worker": "ra')
    assert "it died" in read_runs(tmp_path)[0].missing[0]


def test_a_run_that_died_before_its_prompts_says_so(tmp_path: Path) -> None:
    (begun(tmp_path / "run", "data.limit=3") / "index.json").unlink()
    (reason,) = read_runs(tmp_path)[0].missing
    assert reason.startswith("it died before its prompts were read; to restart: python -m dlm.predict data.limit=3")


@pytest.mark.parametrize("broken", ['{"id": "p0"', '{"id": "p0", "text": "x"}', "[]"])
def test_broken_predictions_are_told_and_cost_one_run(broken: str, tmp_path: Path) -> None:
    sweep(tmp_path)
    (tmp_path / "a" / "predictions.jsonl").write_text(broken + "\n")
    first, *others = read_runs(tmp_path)
    assert "predictions.jsonl cannot be read" in first.missing[0]
    assert [run.whole for run in others] == [True, True, False]


@pytest.mark.parametrize("name", ["index.json", "command.txt", "config.yaml", "summary.json", "shards/a-rank0.jsonl"])
@pytest.mark.parametrize("damage", [b"", b'{"ids": ["a"', b"[" * 200_000, b"\xff'", b"[]"])
def test_a_damaged_file_of_a_run_stops_no_report(name: str, damage: bytes, tmp_path: Path) -> None:
    finished(tmp_path / "whole", [answer(0, right=True, nfe=2)])
    begun(tmp_path / "dead", done=2)
    for run in ("whole", "dead"):
        (tmp_path / run / name).write_bytes(damage)
    assert [run.name for run in read_runs(tmp_path)] == ["dead", "whole"]


def test_a_broken_summary_costs_what_it_alone_knows(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [answer(0, right=True, nfe=2)])
    (run / "summary.json").write_text("{")
    (read,) = read_runs(tmp_path)
    assert "summary.json is broken" in read.missing[0]
    assert read.figures.accuracy == 1.0


def test_a_summary_of_another_program_says_its_own_score(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [{**answer(0, right=True, nfe=2), "row": {}}])
    assert read_runs(tmp_path)[0].missing == ("no accuracy: its answers were not checked",)
    (run / "summary.json").write_text(json.dumps({"exact_match": 0.5, "checked": 2}))
    (read,) = read_runs(tmp_path)
    assert (read.figures.accuracy, read.figures.checked, read.figures.tokens_per_forward) == (0.5, 2, 2.0)


def test_refused_prompts_are_counted(tmp_path: Path) -> None:
    refused = {"id": "p1", "prompt": "", "error": {"type": "DataError", "message": "empty"}}
    finished(tmp_path / "run", [answer(0, right=True, nfe=2), refused])
    (run,) = read_runs(tmp_path)
    assert (run.figures.answers, run.figures.errors, run.nfe) == (1, 1, (2,))


def test_equal_commands_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        finished(tmp_path / name, [answer(0, right=True, nfe=2)], "algorithm=klass", "decoder.max_num_seqs=2")
    finished(tmp_path / "three", [answer(0, right=True, nfe=2)], "algorithm=basic")
    assert {run.label for run in read_runs(tmp_path)} == {
        "algorithm=klass (one)", "algorithm=klass (two)", "algorithm=basic",
    }  # fmt: skip


def test_runs_that_differ_in_numbers_alone_are_a_group_that_says_in_which(tmp_path: Path) -> None:
    for bar in ("0.5", "0.9"):
        finished(tmp_path / bar, [answer(0, right=True, nfe=2)], "algorithm=klass", f"sampler.threshold={bar}")
    finished(tmp_path / "x", [answer(0, right=True, nfe=2)], "algorithm=basic")
    found = [(run.group, run.varied, run.numbers) for run in read_runs(tmp_path)]
    of = ("algorithm=klass", ("sampler.threshold",))
    assert found == [(*of, ("0.5",)), (*of, ("0.9",)), ("algorithm=basic", (), ())]


def test_what_lies_inside_a_run_is_no_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "deep" / "run", [answer(0, right=True, nfe=2)])
    for inside in (run / "wandb" / "files", tmp_path / "wandb" / "files", tmp_path / ".hidden"):
        inside.mkdir(parents=True)
        (inside / "config.yaml").touch()
    assert [run.name for run in read_runs(tmp_path)] == ["deep/run"]
    assert [run.name for run in read_runs(run)] == ["."]


@pytest.mark.parametrize(("folder", "said"), [("nowhere", "no such folder"), (".", "holds no run")])
def test_no_runs_are_an_error_with_a_remedy(folder: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=said):
        read_runs(tmp_path / folder)
