"""The figures at the end of a run, and on the way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning import LightningModule

from dlm.data.prompts import check_demo_answer
from dlm.demo.tasks import held_out
from dlm.distributed.heartbeat import Heartbeat, PeerMonitor, StopFlag, WorkerStatus
from dlm.pipeline.progress import ProgressReport, Totals, clock
from dlm.runs.shards import to_line
from dlm.runs.summary import show, summarize


def predictions(folder: Path) -> Path:
    right, wrong = held_out()[:2]
    rows = [
        {"id": "a", "prompt": right.question, "text": right.answer, "token_ids": [1, 2, 3], "nfe": 2},
        {"id": "b", "prompt": wrong.question, "text": "no answer", "token_ids": [1], "nfe": 4},
        {"id": "c", "prompt": "anything", "text": "x", "token_ids": [], "nfe": 3, "row": {"family": "no such family"}},
        {"id": "d", "prompt": "", "error": {"type": "DataError", "message": "empty"}},
    ]
    rows[0]["row"], rows[1]["row"] = {"family": right.family}, {"family": wrong.family}
    path = folder / "predictions.jsonl"
    path.write_bytes(b"".join(map(to_line, rows)))
    return path


def test_a_summary_counts_what_can_be_checked(tmp_path: Path) -> None:
    summary = summarize(predictions(tmp_path), check_demo_answer)
    assert (summary.prompts, summary.errors, summary.answers) == (4, 1, 3)
    assert (summary.mean_nfe, summary.tokens_per_forward) == (3.0, 4 / 9)
    assert summary.exact_match == 0.5


def test_the_table_says_how_well_how_fast_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = predictions(tmp_path)
    show(
        summarize(path, check_demo_answer),
        Totals(rows=4, errors=1, tokens=400, nfe=9, seconds=20.0, occupancy=0.93),
        path,
    )
    shown = capsys.readouterr().out
    for part in ("exact match, all", "0.500  (1/2)", "3, and 1 errors", "3.00", "0.44", "20.0  (400 in 0:20)", "93%"):
        assert part in shown
    assert "predictions.jsonl" in shown.replace("\n", "")


def test_totals_add_up_over_processes() -> None:
    one = WorkerStatus("rank0", "m", 1, "b", rows=3, tokens=30, nfe=10, steps=10, occupancy=1.0)
    two = WorkerStatus("rank1", "m", 2, "b", rows=1, tokens=10, nfe=10, steps=30, occupancy=0.8)
    totals = Totals.of([one, two], 4.0)
    assert (totals.rows, totals.tokens_per_second, totals.tokens_per_forward) == (4, 10.0, 2.0)
    assert totals.occupancy == pytest.approx(0.85)
    assert totals.eta(10) == 6.0
    assert Totals.of([], 0.0).eta(10) is None


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (63, "1:03"), (3723, "1:02:03")])
def test_a_clock_reads_as_one(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_plain_lines_come_so_often_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heart = Heartbeat(tmp_path, "rank0", StopFlag())
    report = ProgressReport(heart, PeerMonitor(tmp_path, []), total=8, every=1000.0)
    trainer: Any = SimpleNamespace(loggers=())
    report.on_predict_start(trainer, LightningModule())
    heart.count(rows=2, errors=0, tokens=40, nfe=10)
    report._beat()
    assert capsys.readouterr().err == ""
    report.every = 0.0
    report._beat()
    line = capsys.readouterr().err
    assert line.startswith("2/8 sequences, ")
    assert "4.00 tokens/forward" in line
    assert "to go" in line
    report.close()
    report._beat()
    assert capsys.readouterr().err == ""
