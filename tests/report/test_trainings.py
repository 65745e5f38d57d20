"""The report of trainings: what came of each, its curve, and what a run lacks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from dlm.cli.command_line import compose_config
from dlm.evaluation.config import register as register_evaluate
from dlm.report import plots
from dlm.report.__main__ import run as report
from dlm.report.config import register
from dlm.report.runs import is_training
from dlm.report.trainings import COLUMNS, cells, read_trainings, totals
from dlm.rl.grpo.config import register as register_grpo
from dlm.rl.grpo.record import summary_of
from dlm.runs.lock import locked
from tests.report.folders import sweep


def begun(folder: Path, seed: int) -> Path:
    """A run that has not written a line yet."""
    path = folder / f"run{seed}"
    path.mkdir(parents=True)
    parts = "".join(f"{part}:\n  _target_: x\n" for part in ("reward", "likelihood", "objective"))
    (path / "config.yaml").write_text(f"{parts}seed: {seed}\n")
    (path / "command.txt").write_text(f"python -m dlm.rl.grpo experiment=demo_grpo seed={seed} run_dir={path}\n")
    (path / "index.json").write_text('{"ids": ["p0"], "samples": 4, "digest": "x"}')
    return path


def training(folder: Path, seed: int, *, through: bool = True, rise: float = 0.25) -> Path:
    """A run of two steps, as `dlm.rl.grpo` leaves it."""
    path = begun(folder, seed)
    spent = {"seconds_rollout": 3.0, "seconds_reward": 0.0, "seconds_score": 1.0, "seconds_update": 4.0}
    rows = [
        {"step": 0, "validation_reward": 0.5, "validation_stderr": 0.02, "not_judged": 0},
        {"step": 1, "reward": 0.5, "tokens": 5.0, "nfe": 3.0, "not_judged": 0, **spent},
        {"step": 2, "reward": 0.6, "tokens": 5.5, "nfe": 2.5, "not_judged": 0, **spent},
        {"step": 2, "validation_reward": 0.5 + rise, "validation_stderr": 0.01, "not_judged": 0},
    ]
    (path / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"seed": seed}, *rows]))
    if through:
        (path / "summary.json").write_text(json.dumps(summary_of(rows, 90.0)))
    return path


def make(*overrides: str) -> int:
    register()
    return report(compose_config("report", overrides), overrides)


def test_a_line_a_run_tells_what_came_of_it(tmp_path: Path) -> None:
    training(tmp_path, 0)
    training(tmp_path, 1, rise=0.3)
    found = read_trainings(tmp_path)
    [first, second] = [dict(zip(COLUMNS, line, strict=True)) for line in cells(found)]
    assert first == {
        "run": "seed=0", "reward before": "0.500 ± 0.020", "reward after": "0.750 ± 0.010", "gain": "+0.250",
        "steps": "2", "minutes": "1.5", "rollout": "38%", "reward": "0%", "score": "12%", "update": "50%",
        "tokens": "5.5", "NFE": "2.5",
    }  # fmt: skip
    assert second["run"] == "seed=1"
    assert totals(found) == {"report/runs": 2.0, "report/unfinished": 0.0, "report/least_gain": pytest.approx(0.25)}


def test_a_page_a_table_and_a_curve_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training(tmp_path, 0)
    half = training(tmp_path, 1, through=False)
    with (half / "training.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    assert make(f"runs={tmp_path}", "logger=none") == 0
    shown = capsys.readouterr()
    assert "+0.250" in shown.out
    assert "seed=1: it died or was stopped after step 2; to resume: python -m dlm.rl.grpo" in shown.err
    assert "seed=1: line 6 of training.jsonl is broken" in shown.err
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written == {"training.html", "training.csv", "reward.png"}
    assert "1 of 2 runs finished" in (tmp_path / "report" / "training.html").read_text()
    [_, line] = csv.reader((tmp_path / "report" / "training.csv").read_text().splitlines())
    assert line[0] == "seed=0"


def test_a_run_that_goes_on_is_not_called_dead(tmp_path: Path) -> None:
    folder = training(tmp_path, 0, through=False)
    with locked(folder):
        [running] = read_trainings(tmp_path)
    assert running.missing == ("it is still running: step 2 is done",)
    [dead] = read_trainings(tmp_path)
    assert dead.missing[0].startswith("it died or was stopped after step 2")


@pytest.mark.parametrize("log", [None, '{"seed": 1}\n', '{"seed": 1}\n{"step": 0, "validation_reward": 0.5}\n'])
def test_a_run_before_its_first_step_is_one_of_the_trainings(
    log: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training(tmp_path, 0)
    early = begun(tmp_path, 1)
    if log is not None:
        (early / "training.jsonl").write_text(log)
    with locked(early):
        [_, running] = read_trainings(tmp_path)
    assert running.missing == ("it is still running: no step is done",)
    assert make(f"runs={tmp_path}", "logger=none") == 0
    said = "seed=1: it died or was stopped before its first step; to resume: python -m dlm.rl.grpo"
    assert said in capsys.readouterr().err
    assert "1 of 2 runs finished" in (tmp_path / "report" / "training.html").read_text()
    assert not (tmp_path / "report" / "report.html").exists()


def test_trainings_alone_that_took_no_step_are_a_report(tmp_path: Path) -> None:
    begun(tmp_path, 0)
    assert make(f"runs={tmp_path}", "logger=none") == 0
    assert "No step was taken." in (tmp_path / "report" / "training.html").read_text()


def test_a_run_whose_log_is_gone_says_so(tmp_path: Path) -> None:
    (training(tmp_path, 0) / "training.jsonl").unlink()
    [found] = read_trainings(tmp_path)
    assert found.missing == ("training.jsonl is missing, so its steps are unknown",)
    assert totals([found])["report/least_gain"] == pytest.approx(0.25)


@pytest.mark.parametrize(("program", "trains"), [("grpo", True), ("predict", False), ("evaluate", False)])
def test_a_training_is_known_by_its_configuration(program: str, trains: bool, tmp_path: Path) -> None:
    register_evaluate()
    register_grpo()
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(compose_config(program, [])))
    assert is_training(tmp_path) is trains


def test_the_curve_holds_steps_and_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    real = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or real(figure))
    training(tmp_path, 0)
    assert plots.reward_curves(read_trainings(tmp_path)) is not None
    [axes] = drawn[0].axes
    lines = [list(line.get_ydata()) for line in axes.lines]
    assert [0.5, 0.6] in lines
    assert [0.5, 0.75] in lines
    assert plots.reward_curves([]) is None


def test_runs_of_both_kinds_have_a_report_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path)
    training(tmp_path, 0)
    assert make(f"runs={tmp_path}", "logger=none") == 0
    assert "area of the Pareto front" in capsys.readouterr().out
    assert {"training.html", "report.html"} <= {path.name for path in (tmp_path / "report").iterdir()}
