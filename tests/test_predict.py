"""`python -m dlm.predict`: the same rows from one process and from several, whole after every interruption."""

from __future__ import annotations

import json
import random
import re
import shlex
import signal
from collections import Counter
from pathlib import Path

import pytest

from dlm.cli.command_line import compose_config
from dlm.pipeline.data import seed_of
from dlm.predict import run as predict
from tests import kill_runs, running
from tests.pipeline import wandb_file
from tests.running import TINY, answers, processes_of, python, rows_of, shard_rows, started, torchrun

PROMPTS = 40
BAD = {8: b'{"prompt": ', 12: b'{"prompt": ""}', 16: b'{"prompt": "\xff"}', 20: b'{"prompt": "x", "id": "own-0"}'}
"""Lines that cannot be decoded, by number."""


def decode(*overrides: str) -> int:
    """Run in this process."""
    return predict(compose_config("predict", overrides), overrides)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = running.write_prompts(tmp_path_factory.mktemp("data") / "prompts.jsonl", PROMPTS)
    lines = path.read_bytes().splitlines()
    for number, line in BAD.items():
        lines[number - 1] = line
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.fixture(scope="module")
def arguments(prompts: Path) -> list[str]:
    return [*TINY, f"data.path={prompts}", "generation.temperature=0.5", "decoder.max_num_seqs=4"]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert decode(*arguments, f"run_dir={run_dir}") == 0
    return run_dir


def test_rows_come_in_input_order_with_all_that_is_known(whole: Path) -> None:
    rows = rows_of(whole / "predictions.jsonl")
    expected = [f"own-{n}" if n % 4 == 0 and n + 1 not in BAD else f"line-{n + 1}" for n in range(PROMPTS)]
    assert [row["id"] for row in rows] == expected
    for row in rows:
        if "error" not in row:
            assert set(row) == {
                "id", "prompt", "text", "token_ids", "finish_reason", "nfe", "positions", "seed", "seconds",
            }  # fmt: skip
            assert row["prompt"].startswith("Question")
            assert row["seed"] == seed_of(0, row["id"])
            assert len(row["token_ids"]) <= 32
            assert row["nfe"] <= 32


def test_bad_rows_cost_themselves_alone(whole: Path) -> None:
    errors = {row["id"]: row["error"]["message"] for row in rows_of(whole / "predictions.jsonl") if "error" in row}
    assert set(errors) == {f"line-{number}" for number in BAD}
    for number, said in {8: "broken JSON", 12: "empty", 16: "invalid UTF-8", 20: "duplicate id 'own-0'"}.items():
        assert said in errors[f"line-{number}"]


def test_the_folder_keeps_what_was_asked(whole: Path, arguments: list[str]) -> None:
    assert "temperature: 0.5" in (whole / "config.yaml").read_text()
    assert arguments[0] in (whole / "command.txt").read_text()


@pytest.fixture(scope="module")
def by_lightning(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that Lightning starts."""
    run_dir = tmp_path_factory.mktemp("runs") / "lightning"
    command = python("dlm.predict", *arguments, "trainer=ddp", "trainer.devices=2", f"run_dir={run_dir}")
    done = running.run(command, run_dir.parent)
    assert done.returncode == 0, done.stderr
    assert not processes_of(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def by_torchrun(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that torchrun starts, in the folder on which they agree."""
    folder = tmp_path_factory.mktemp("runs")
    done = running.run(torchrun(2, "dlm.predict", *arguments, "trainer=ddp"), folder)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (folder / "outputs" / "predict").iterdir()
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("way", ["by_lightning", "by_torchrun"])
def test_two_processes_give_the_same_rows_and_decode_each_prompt_once(
    way: str, whole: Path, request: pytest.FixtureRequest
) -> None:
    run_dir: Path = request.getfixturevalue(way)
    assert answers(run_dir) == answers(whole)
    shards = sorted((run_dir / "shards").glob("*.jsonl"))
    assert [path.stem[-5:] for path in shards] == ["rank0", "rank1"], "both have worked"
    counts = Counter(row["id"] for row in shard_rows(run_dir))
    assert len(counts) == PROMPTS
    assert set(counts.values()) == {1}
    claims = [path for path in next((run_dir / "claims").iterdir()).iterdir() if path.name.isdigit()]
    assert {path.read_text() for path in claims} == {"rank0", "rank1"}


def test_a_resumed_run_does_what_is_missing_and_nothing_else(whole: Path, arguments: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert decode(*arguments, f"run_dir={run_dir}") == 0
    (shard,) = (run_dir / "shards").iterdir()
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(lines[:25]) + lines[25][:40])
    (run_dir / "predictions.jsonl").unlink()
    assert decode(*arguments, f"run_dir={run_dir}", "decoder.max_num_seqs=7") == 0
    assert answers(run_dir) == answers(whole)
    second = [path for path in (run_dir / "shards").iterdir() if path != shard]
    assert [len(rows_of(path)) for path in second] == [PROMPTS - 25]


def test_a_finished_run_is_merged_again_without_a_model(whole: Path, arguments: list[str]) -> None:
    before = answers(whole)
    (whole / "predictions.jsonl").unlink()
    assert decode(*arguments, f"run_dir={whole}") == 0
    assert answers(whole) == before
    assert len(list((whole / "shards").iterdir())) == 1


def test_merge_by_hand(whole: Path) -> None:
    before = (whole / "predictions.jsonl").read_bytes()
    (whole / "predictions.jsonl").unlink()
    done = running.run(python("dlm.merge", f"run_dir={whole}"), whole)
    assert done.returncode == 0, done.stderr
    assert f"{PROMPTS} rows for {PROMPTS} prompts, {len(BAD)} of them errors" in done.stdout.replace("\n", " ")
    assert (whole / "predictions.jsonl").read_bytes() == before


def test_tasks_of_a_job_array_share_the_prompts(
    whole: Path,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    attempt = tmp_path / "run" / "claims" / "slurm-array-7"
    attempt.mkdir(parents=True)
    (attempt / "0").write_text("task1-rank0")
    assert decode(*arguments, f"run_dir={tmp_path / 'run'}") == 0
    assert "this task of the array is done; 30 of 40 prompts are answered" in capsys.readouterr().err
    assert not (tmp_path / "run" / "predictions.jsonl").exists()
    (attempt / "0").unlink()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert decode(*arguments, f"run_dir={tmp_path / 'run'}") == 0
    assert answers(tmp_path / "run") == answers(whole)
    shards = sorted(path.stem for path in (tmp_path / "run" / "shards").iterdir())
    assert shards == ["slurm-array-7-task0-rank0", "slurm-array-7-task1-rank0"]


def test_a_preempted_task_of_an_array_stops_alone_and_goes_on_when_it_is_started_again(
    whole: Path, arguments: list[str], tmp_path: Path
) -> None:
    command = python("dlm.predict", *arguments, f"run_dir={tmp_path / 'run'}")
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_ID": "1"}
    claims = tmp_path / "run" / "claims" / "slurm-array-7"
    with started(command, tmp_path, **array) as process:
        running.wait_until(lambda: len(shard_rows(tmp_path / "run")) > 2, "an answer", process)
        process.send_signal(signal.SIGTERM)
        stopped = running.finish(process)
    if stopped.returncode == 0:
        pytest.skip("decoded before the signal came")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert not (claims / "stop").exists()
    held = [path for path in claims.iterdir() if path.name.isdigit()]
    free = next(path for path in (claims / str(n) for n in range(99)) if path not in held)
    free.write_text("task1-rank0")  # as if it had been killed with this in hand
    other = running.run(command, tmp_path, **array | {"SLURM_ARRAY_TASK_ID": "2"})
    assert other.returncode == 0, other.stderr
    assert "this task of the array is done" in other.stderr
    again = running.run(command, tmp_path, **array, SLURM_RESTART_COUNT="1")
    assert again.returncode == 0, again.stderr
    assert answers(tmp_path / "run") == answers(whole)
    rows = Counter(row["id"] for row in shard_rows(tmp_path / "run"))
    assert set(rows.values()) == {1}, "nothing is decoded twice"
    nothing = running.run(command, tmp_path, **array | {"SLURM_ARRAY_TASK_ID": "0"})
    assert nothing.returncode == 0, nothing.stderr
    assert not list((tmp_path / "run" / "shards").glob("*task0*"))


def test_samples_records_and_stop_strings(prompts: Path, tmp_path: Path) -> None:
    base = [*TINY, f"data.path={prompts}", "data.limit=3", "generation.temperature=1", "generation.n=2"]
    assert decode(*base, "generation.record=true", f"run_dir={tmp_path / 'a'}") == 0
    rows = rows_of(tmp_path / "a" / "predictions.jsonl")
    assert [(row["id"], row["sample"]) for row in rows] == [
        (id, sample) for id in ("own-0", "line-2", "line-3") for sample in (0, 1)
    ]
    assert rows[0]["text"] != rows[1]["text"]
    for row in rows:
        assert len(row["canvas_ids"]) == len(row["step_map"]) == len(row["logprobs"]) == 32
        assert max(row["step_map"]) == row["nfe"]
    word = re.findall("[A-Za-z]{3,}", rows[0]["text"])[1]
    assert decode(*base, f"generation.stop=[{word}]", f"run_dir={tmp_path / 'b'}") == 0
    cut = rows_of(tmp_path / "b" / "predictions.jsonl")[0]
    assert cut["text"] == rows[0]["text"][: rows[0]["text"].index(word)]
    assert cut["finish_reason"] == "stop"


def test_the_family_decides_where_it_is_left_to_it(prompts: Path, tmp_path: Path) -> None:
    base = [*TINY, f"data.path={prompts}", "data.limit=3"]
    assert decode(*base, "algorithm=auto", f"run_dir={tmp_path / 'auto'}") == 0
    assert decode(*base, "algorithm=dinfer_blockwise", f"run_dir={tmp_path / 'named'}") == 0
    assert answers(tmp_path / "auto") == answers(tmp_path / "named")


def test_another_seed_gives_other_text(prompts: Path, tmp_path: Path) -> None:
    base = [*TINY, f"data.path={prompts}", "data.limit=3", "generation.temperature=1"]
    for seed in ("1", "2", "null"):
        assert decode(*base, f"generation.seed={seed}", f"run_dir={tmp_path / seed}") == 0
    texts = [[row["text"] for row in answers(tmp_path / seed)] for seed in ("1", "2", "null")]
    assert texts[0] != texts[1] != texts[2]


def test_csv_figures_lie_in_the_run_folder(prompts: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert decode(*TINY, f"data.path={prompts}", "data.limit=3", "logger=csv", f"run_dir={run_dir}") == 0
    header, *lines = (run_dir / "csv" / "metrics.csv").read_text().splitlines()
    assert "summary/mean_nfe" in header
    assert lines


@pytest.mark.slow
def test_wandb_is_offline_told_everything_and_finished(prompts: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = python("dlm.predict", *TINY, f"data.path={prompts}", "data.limit=9", "logger=wandb", f"run_dir={run_dir}")
    done = running.run([*command, "progress.every_seconds=0.1"], tmp_path, WANDB_API_KEY="")
    assert done.returncode == 0, done.stderr
    (offline,) = (run_dir / "wandb").glob("offline-run-*")
    (kept,) = map(wandb_file.read, offline.glob("*.wandb"))
    assert (kept.name, kept.job_type, kept.exit_code) == ("run", "predict", 0)
    assert kept.config["generation"]["gen_length"] == 32
    assert [entry["progress/answers"] for entry in kept.history if "progress/answers" in entry][-1] == 9
    assert kept.summary["summary/answers"] + kept.summary["summary/errors"] == 9
    assert kept.summary["predictions.nrows"] == 9
    assert kept.artifacts["shards-run"] == [path.name for path in (run_dir / "shards").iterdir()]
    assert "wandb:" not in done.stdout + done.stderr
    (table,) = (offline / "files" / "media" / "table").glob("predictions_*.json")
    assert len(json.loads(table.read_text())["data"]) == 9


LONG = ("generation.gen_length=128", "generation.temperature=1", "decoder.max_num_seqs=2")
"""Enough to do for a signal to come in the middle."""


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code", "world"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2)])
def test_a_signal_ends_the_run_cleanly_and_says_how_to_resume(
    signum: signal.Signals, code: int, world: int, prompts: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    devices = ["trainer=ddp", "trainer.devices=2"] if world == 2 else []
    command = python("dlm.predict", *TINY, f"data.path={prompts}", *LONG, *devices, f"run_dir={run_dir}")
    with started(command, tmp_path) as process:
        running.wait_until(lambda: len(shard_rows(run_dir)) > 2, "a few answers", process)
        process.send_signal(signum)
        done = running.finish(process)
        assert not processes_of(run_dir)
    assert done.returncode == code, done.stderr
    assert "stopping after the step in progress" in done.stderr
    assert "Traceback" not in done.stderr
    said = re.search(r"stopped: (\d+) of (\d+) prompts are answered and kept", done.stderr)
    assert said is not None, done.stderr
    assert int(said[1]) == len(shard_rows(run_dir)) < PROMPTS == int(said[2])
    words = shlex.split(done.stderr.split("To finish:")[1].strip().splitlines()[0])
    assert words[:3] == ["python", "-m", "dlm.predict"]
    assert decode(*[word for word in words[3:] if not word.startswith("trainer")], "decoder.max_num_seqs=16") == 0
    assert len(shard_rows(run_dir)) == PROMPTS


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(prompts: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    slow = ["model.size=57m", "generation.gen_length=512", "engine=full"]
    command = python("dlm.predict", *TINY, *slow, f"data.path={prompts}", f"run_dir={run_dir}")
    with started(command, tmp_path) as process:
        running.wait_until(lambda: bool(list(run_dir.glob("claims/*/0"))), "the first claim", process)
        process.send_signal(signal.SIGINT)
        running.wait_until(lambda: bool(list(run_dir.glob("claims/*/stop"))), "the stop mark", process)
        process.send_signal(signal.SIGINT)
        done = running.finish(process)
    assert done.returncode == 130, done.stderr
    assert "stopped immediately" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("victims", kill_runs.VICTIMS, ids=lambda victims: f"rank{'+'.join(map(str, victims))}")
def test_a_killed_run_loses_nothing_finished_and_is_resumed(
    victims: tuple[int, ...], undisturbed: kill_runs.Undisturbed
) -> None:
    print(kill_runs.trial(undisturbed, victims, random.Random(str(victims))))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> kill_runs.Undisturbed:
    return kill_runs.undisturbed(tmp_path_factory.mktemp("killed"), 96)
