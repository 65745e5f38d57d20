"""A multirun in which one job dies: the others go on, and the report says which one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm.report.runs import read_runs
from tests import running
from tests.running import rows_of


@pytest.mark.slow
def test_the_other_jobs_of_a_sweep_go_on_when_one_dies(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "run-0.7" / "predictions.jsonl").mkdir(parents=True)  # so that it cannot be written
    command = running.python(
        "dlm.predict", "-m", "data.limit=2", "sampler.threshold=0.5,0.7,0.9",
        f"run_dir={runs}/run-${{sampler.threshold}}",
    )  # fmt: skip
    done = running.run(command, tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("predictions.jsonl") == 2
    assert "1 of the jobs failed:\n  data.limit=2 sampler.threshold=0.7" in done.stderr
    assert "Traceback" not in done.stderr
    slow, dead, fast = read_runs(runs)
    assert (slow.whole, dead.whole, fast.whole) == (True, False, True)
    assert "2 of 2 prompts are answered; to resume: python -m dlm.predict" in dead.missing[0]


DEADLY = """
import os, pathlib, signal

def fine(row, text):
    return True

def deadly(row, text):
    if not pathlib.Path("spared").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return True
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_job_that_is_killed_leaves_the_others_and_the_same_command_goes_on_with_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(DEADLY)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Sort 3 1 2."}\n')
    command = running.python(
        "dlm.evaluate", "-m", "task=jsonl", "data.path=rows.jsonl", "task.checker=own:deadly,own:fine",
        "generation.gen_length=16,32", "hydra.sweep.dir=runs",
    )  # fmt: skip
    done = running.run(command, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("killed by SIGKILL") == 2
    assert "2 of the jobs failed:\n  task=jsonl data.path=rows.jsonl 'task.checker=own" in done.stderr
    assert "job 4: task=jsonl" in done.stdout
    runs = read_runs(tmp_path / "runs")
    assert [run.figures.accuracy for run in runs] == [None, None, 1.0, 1.0]
    assert "no summary.json" in runs[0].missing[0]
    assert "to resume: python -m dlm.evaluate task=jsonl" in runs[0].missing[0]

    (tmp_path / "spared").touch()
    again = running.run(command, tmp_path)
    assert again.returncode == 0, again.stderr
    assert "side by side: python -m dlm.report runs=runs" in again.stdout
    for run in read_runs(tmp_path / "runs"):
        assert (run.figures.accuracy, run.missing) == (1.0, ())
        assert len(rows_of(run.folder / "predictions.jsonl")) == 1
        assert len(list((run.folder / "shards").iterdir())) == 1
