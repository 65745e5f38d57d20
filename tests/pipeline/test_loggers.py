"""A logger is told everything and can stop nobody."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning import LightningModule
from lightning.pytorch.loggers import CSVLogger

from dlm.distributed.heartbeat import Heartbeat, PeerMonitor, StopFlag
from dlm.pipeline.loggers import TABLE_ROWS, attempt, finish, table_of
from dlm.pipeline.progress import ProgressReport
from tests import running
from tests.pipeline.stand_in_wandb import standing_in
from tests.running import TINY, python, rows_of, started


class Broken(CSVLogger):
    """Fails at whatever it is told."""

    told = 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.told += 1
        raise ConnectionError("the service is gone")

    def finalize(self, status: str) -> None:
        raise BrokenPipeError("the service is gone")


def test_what_fails_is_said_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConnectionError("no way there")

    assert attempt("this", lambda: 1)
    assert not attempt("that", fail)
    shown = capsys.readouterr().err
    assert "that: not logged, the run continues (ConnectionError: no way there)" in shown
    assert "this" not in shown


def test_an_interrupt_is_no_failure_of_a_logger() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt("this", interrupted)


def test_progress_goes_on_without_a_logger_that_fails_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = Broken(tmp_path)
    report = ProgressReport(Heartbeat(tmp_path, "rank0", StopFlag()), PeerMonitor(tmp_path, []), total=8, every=0.0)
    trainer: Any = SimpleNamespace(loggers=[logger])
    report.on_predict_start(trainer, LightningModule())
    for _ in range(3):
        report._beat()
    assert logger.told == 1
    shown = capsys.readouterr().err
    assert shown.count("progress: not logged") == 1
    assert shown.count("0/8 sequences") == 3
    finish(logger, 0)
    assert "the end of the run: not logged" in capsys.readouterr().err


def test_a_table_has_the_first_answers_and_no_more() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt": [{"role": "user", "content": "x"}], "text": "y", "nfe": 2},
        {"id": "b", "prompt": "", "error": {"message": "empty"}},
        *({"id": str(n), "prompt": "x", "text": "y", "nfe": 1} for n in range(TABLE_ROWS)),
    ]
    table = table_of(iter(rows))
    assert isinstance(table, wandb.Table)
    assert len(table.data) == TABLE_ROWS == 200
    assert table.data[:2] == [
        ["a", '[{"role": "user", "content": "x"}]', "y", 2, None],
        ["b", "", None, None, "empty"],
    ]


def test_a_table_of_an_evaluation_says_what_is_right() -> None:
    rows = [{"id": name, "prompt": "1 + 1?", "text": "2", "nfe": 1} for name in "ab"]
    results = [{"id": "a", "right": True, "answer": "2", "reference": "2"}, {"id": "b", "right": False}]
    table = table_of(rows, results)
    assert table.columns[-3:] == ["right", "answer", "reference"]
    assert [line[-3:] for line in table.data] == [[True, "2", "2"], [False, None, None]]


def whole(run_dir: Path, count: int) -> bool:
    return len(rows_of(run_dir / "predictions.jsonl")) == count and (run_dir / "summary.json").exists()


@pytest.mark.slow
def test_a_run_ends_well_when_wandb_dies_in_the_middle(tmp_path: Path) -> None:
    run_dir, prompts = tmp_path / "run", running.write_prompts(tmp_path / "prompts.jsonl", 24)
    command = python(
        "dlm.predict", *TINY, f"data.path={prompts}", "logger=wandb", f"run_dir={run_dir}", "generation.temperature=1",
        "generation.gen_length=128", "decoder.max_num_seqs=2", "progress.every_seconds=0.2",
    )  # fmt: skip
    with started(command, tmp_path, WANDB_API_KEY="") as process:
        running.wait_until(lambda: len(running.shard_rows(run_dir)) > 2, "a few answers", process)
        for pid in services(process.pid):
            os.kill(pid, signal.SIGKILL)
        done = running.finish(process)
    assert done.returncode == 0, done.stderr
    assert whole(run_dir, 24)
    assert "not logged, the run continues" in done.stderr


def services(owner: int) -> list[int]:
    """The processes in which W&B works for a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if words[0].endswith("wandb-core") and str(owner) in words:
                found.append(int(entry.name))
    assert found, "W&B has no process of its own"
    return found


@pytest.mark.slow
def test_a_run_is_kept_offline_where_wandb_cannot_be_reached(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        run_dir, prompts = tmp_path / "run", running.write_prompts(tmp_path / "prompts.jsonl", 3)
        command = python("dlm.predict", *TINY, f"data.path={prompts}", "logger=wandb", "logger.offline=false")
        done = running.run(
            [*command, f"run_dir={run_dir}"], tmp_path,
            WANDB_BASE_URL=url, WANDB_API_KEY="0" * 40, WANDB_INIT_TIMEOUT="3",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert whole(run_dir, 3)
    assert "W&B data is kept in" in done.stderr
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
@pytest.mark.long
def test_a_run_ends_well_when_the_server_of_wandb_goes_away_in_the_middle(tmp_path: Path) -> None:
    run_dir, prompts = tmp_path / "run", running.write_prompts(tmp_path / "prompts.jsonl", 24)
    command = python(
        "dlm.predict", *TINY, f"data.path={prompts}", "logger=wandb", "logger.offline=false", f"run_dir={run_dir}",
        "generation.temperature=1", "generation.gen_length=128", "decoder.max_num_seqs=2", "progress.every_seconds=0.2",
    )  # fmt: skip
    with standing_in() as server:
        variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "WANDB_FINISH_TIMEOUT": "2"}
        with started(command, tmp_path, **variables) as process:
            running.wait_until(server.streamed.is_set, "the first figures", process)
            assert len(running.shard_rows(run_dir)) < 24
            server.go_away()
            done = running.finish(process)
    assert done.returncode == 0, done.stderr
    assert whole(run_dir, 24)
    assert list((run_dir / "wandb").glob("run-*/*.wandb")), "what was not uploaded is on the disk"
