"""A multirun in which one job dies: the others go on, and the report says which one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm.report.runs import read_runs
from tests import running


@pytest.mark.slow
@pytest.mark.long
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
    assert "2 of 2 prompts are answered; to go on: python -m dlm.predict" in dead.missing[0]
