"""`python -m dlm.evaluate`: a run of predict with judges at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlm._paths import conf_dir
from dlm.cli.command_line import compose_config
from dlm.errors import ConfigError, DataError
from dlm.evaluate import run as evaluate
from dlm.evaluation.checks import check_evaluate
from dlm.evaluation.config import register
from dlm.evaluation.sandbox.run import reads_are_closed
from dlm.predict import run as predict
from tests import running
from tests.running import answers, python, rows_of

QUICK = ("generation.gen_length=32", "progress.every_seconds=1000")
FEW = ("task.only=[split,capital]", *QUICK)
"""69 prompts of the demo: 46 with many valid answers, and the capitals."""


def measure(*overrides: str) -> int:
    """Run in this process."""
    register()
    return evaluate(compose_config("evaluate", overrides), overrides)


def refusal(*overrides: str) -> str:
    register()
    with pytest.raises(ConfigError) as raised:
        check_evaluate(compose_config("evaluate", overrides), overrides)
    return str(raised.value)


def summary_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two families."""
    run_dir = tmp_path_factory.mktemp("runs") / "demo"
    assert measure(*FEW, f"run_dir={run_dir}") == 0
    return run_dir


def test_the_demo_is_answered_and_judged(demo: Path) -> None:
    figures, results = summary_of(demo), rows_of(demo / "results.jsonl")
    assert [row["id"] for row in results] == [row["id"] for row in rows_of(demo / "predictions.jsonl")]
    assert figures["exact_match"] == sum(row["right"] for row in results) / len(results) > 0.9
    assert set(figures["scores"]) == {row["group"] for row in results} == {"split", "capital"}
    assert figures["interval"]["low"] < figures["exact_match"] <= figures["interval"]["high"]
    assert figures["tokens_per_second"] > 0
    assert figures["mean_nfe"] == sum(row["nfe"] for row in results) / len(results)
    assert figures["tokens_per_forward"] == pytest.approx(figures["tokens"] / sum(row["nfe"] for row in results))


def test_it_is_the_decoder_of_predict(demo: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "predict"
    overrides = ("data.limit=46", *QUICK, f"run_dir={run_dir}")
    assert predict(compose_config("predict", overrides), overrides) == 0
    theirs = {row["id"]: (row["text"], row["nfe"], row["seed"]) for row in answers(run_dir)}
    ours = {row["id"]: (row["text"], row["nfe"], row["seed"]) for row in answers(demo)}
    assert ours.keys() & theirs.keys()
    assert all(ours[id] == theirs[id] for id in ours.keys() & theirs.keys())


def test_a_stopped_run_goes_on_and_is_judged_whole(demo: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert measure(*FEW, f"run_dir={run_dir}") == 0
    (shard,) = (run_dir / "shards").iterdir()
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(lines[:20]) + lines[20][:30])
    for name in ("predictions.jsonl", "results.jsonl", "summary.json"):
        (run_dir / name).unlink()
    assert measure(*FEW, f"run_dir={run_dir}") == 0
    assert rows_of(run_dir / "results.jsonl") == rows_of(demo / "results.jsonl")
    assert summary_of(run_dir)["exact_match"] == summary_of(demo)["exact_match"]


def test_judging_again_decodes_nothing_and_keeps_the_speed(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = summary_of(demo)
    more = ("checking.level=0.8", "published.score=100", "published.source=nobody", "published.tolerance=50")
    assert measure(*FEW, *more, f"run_dir={demo}") == 0
    after = summary_of(demo)
    assert after["tokens_per_second"] == before["tokens_per_second"]
    assert after["interval"]["level"] == 0.8
    assert after["published"]["agrees"]
    assert "100 published (nobody)" in " ".join(capsys.readouterr().out.split())
    assert len(list((demo / "shards").iterdir())) == 1


def test_another_question_is_another_run(demo: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.template: begun with '\{prompt\}', now 'Q: \{prompt\}'"):
        measure(*FEW, 'task.template="Q: {prompt}"', f"run_dir={demo}")


def raising(row: dict[str, Any], text: str) -> bool:
    """A checker of a user's."""
    if row["family"] == "capital":
        raise LookupError("capitals are [/unknown] here\nand there")
    return text.startswith("Parts")


def test_a_checker_that_raises_is_counted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "Split 7 eggs into 2.", "family": "split"},
            {"prompt": "Capital of France?", "family": "capital"},
            {"prompt": "", "family": "split"},
        ],
    )
    arguments = ("task=jsonl", f"task.checker={__name__}:raising", f"data.path={path}", *QUICK)
    assert measure(*arguments, f"run_dir={tmp_path / 'run'}") == 0
    figures = summary_of(tmp_path / "run")
    assert figures["states"] == {"judged": 1, "no answer": 0, "checker failed": 1, "unreadable": 1}
    assert figures["exact_match"] == 0.5
    shown = " ".join(capsys.readouterr().out.split())
    assert "samples, checker failed 1 (line-2: LookupError: capitals are [/unknown] here)" in shown
    assert "samples, unreadable 1 (line-3: field 'prompt' is empty)" in shown
    reasons = [row["reason"] for row in rows_of(tmp_path / "run" / "results.jsonl")]
    assert reasons == ["", "LookupError: capitals are [/unknown] here\nand there", "field 'prompt' is empty"]


GSM8K: list[dict[str, Any]] = [
    {"question": "Ann has 3 pens and buys 4. How many has she?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    {"question": "A book costs $1,000 and a pen $2. And both?", "answer": "1000 + 2 = 1,002\n#### 1,002"},
    {"question": "Tom ran 5 miles on each of 3 days. How far?", "answer": "5 * 3 = 15\n#### 15"},
]
HUMANEVAL: list[dict[str, Any]] = [
    {
        "task_id": "Own/0",
        "prompt": 'def double(x: int) -> int:\n    """Twice x."""\n',
        "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    },
    {
        "task_id": "Own/1",
        "prompt": "def nothing():\n",
        "entry_point": "nothing",
        "test": "def check(candidate):\n    pass\n",
    },
]


def test_gsm8k_from_end_to_end(tmp_path: Path) -> None:
    path = write(tmp_path / "gsm8k.jsonl", GSM8K)
    shots = ("task.num_shots=1", f"task.shots_path={path}", "task.shots_seed=0", "generation.n=2", "checking.k=[1,2]")
    assert measure("task=gsm8k", f"data.path={path}", *shots, *QUICK, f"run_dir={tmp_path / 'run'}") == 0
    results = rows_of(tmp_path / "run" / "results.jsonl")
    assert [row["reference"] for row in results] == ["7", "7", "1002", "1002", "15", "15"]
    assert [score["name"] for score in summary_of(tmp_path / "run")["all_scores"]] == ["pass@1", "pass@2"]
    prompt = rows_of(tmp_path / "run" / "predictions.jsonl")[0]["prompt"]
    assert prompt.count("final answer within \\boxed{}") == 2


def test_humaneval_runs_answers_in_the_sandbox(tmp_path: Path) -> None:
    path = write(tmp_path / "humaneval.jsonl", HUMANEVAL)
    arguments = ("task=humaneval", f"data.path={path}", *QUICK)
    assert "Write allow_code_execution=true if you want that" in refusal(*arguments)
    assert measure(*arguments, "allow_code_execution=true", f"run_dir={tmp_path / 'run'}") == 0
    first, second = rows_of(tmp_path / "run" / "results.jsonl")
    assert (first["id"], first["right"]) == ("Own/0", False)
    assert first["reason"]
    assert "def nothing():" in second["answer"]
    judged_by = summary_of(tmp_path / "run")["sandbox"]
    assert judged_by == {"seconds": 10.0, "memory_mib": 1024, "reads_are_closed": reads_are_closed()}


def test_a_kernel_that_cannot_close_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "humaneval.jsonl", HUMANEVAL)
    arguments = ("task=humaneval", f"data.path={path}", *QUICK)
    monkeypatch.setattr("dlm.evaluation.sandbox.run.available", lambda: False)
    assert "read every one that you can, secrets among them" in refusal(*arguments)
    with pytest.warns(RuntimeWarning, match=r"no Landlock.*secrets among them") as told:
        assert measure(*arguments, "allow_code_execution=true", f"run_dir={tmp_path / 'run'}") == 0
    assert told[0].filename.endswith("session.py")  # before anything is decoded
    assert summary_of(tmp_path / "run")["sandbox"]["reads_are_closed"] is False


CAPITALS: list[dict[str, Any]] = [
    {"prompt": "Capital of France?", "choices": ["Rome", "Paris", "Oslo"], "answer": 1},
    {"prompt": "Capital of Norway?", "choices": ["Rome", "Paris", "Oslo"], "answer": "C"},
    {"prompt": "Capital of Italy?", "choices": {"text": ["Rome", "Paris"], "label": ["1", "2"]}, "answer": "1"},
    {"prompt": "Capital of Spain?", "choices": ["Madrid"], "answer": 0},
]


def choices(path: Path, *more: str) -> tuple[str, ...]:
    scheme = ("task.scheme_options={mc_num: 8}", 'task.choice="Capital: {choice}"')
    return ("task=multiple_choice", f"data.path={path}", *scheme, *more)


def test_choices_are_scored_and_nothing_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "choices.jsonl", CAPITALS)
    assert measure(*choices(path), f"run_dir={tmp_path / 'run'}") == 0
    predictions = rows_of(tmp_path / "run" / "predictions.jsonl")
    assert [len(row["scores"]) for row in predictions[:3]] == [3, 3, 2]
    assert "error" in predictions[3]
    assert [row["answer"] for row in rows_of(tmp_path / "run" / "results.jsonl")] == ["B", "C", "A", None]
    figures = summary_of(tmp_path / "run")
    assert (figures["metric"], figures["exact_match"], figures["checked"]) == ("accuracy", 1.0, 3)
    assert figures["scheme"] == "llada_mc"


def test_choices_are_scored_as_the_likelihood_does(tmp_path: Path) -> None:
    import torch

    from dlm.decoding.noise import seed_of
    from dlm.demo import CHECKPOINT
    from dlm.likelihood import Likelihood, LladaMC
    from dlm.models.io.loading import load_checkpoint
    from dlm.text import TextCodec

    path = write(tmp_path / "choices.jsonl", CAPITALS[:1])
    assert measure(*choices(path, "generation.seed=3"), f"run_dir={tmp_path / 'run'}") == 0
    (row,) = rows_of(tmp_path / "run" / "predictions.jsonl")
    checkpoint = load_checkpoint(CHECKPOINT, dtype="float32", device=torch.device("cpu"))
    codec = TextCodec.load(CHECKPOINT, True)
    texts = [codec.encode_continuation(f"Capital: {city}") for city in ("Rome", "Paris", "Oslo")]
    prompts = [codec.encode("Capital of France?")] * 3
    seed = seed_of(3, "line-1")
    assert seed is not None
    scores = Likelihood(checkpoint.backbone, checkpoint.special).score(prompts, texts, LladaMC(8), seed=seed)
    assert row["scores"] == scores.mean.tolist()
    assert row["lengths"] == [len(text) for text in texts]


@pytest.mark.parametrize("way", ["choices", "demo"])
@pytest.mark.slow
def test_two_processes_give_the_same_results(way: str, demo: Path, tmp_path: Path) -> None:
    arguments, whole = FEW, demo
    if way == "choices":
        arguments, whole = choices(write(tmp_path / "choices.jsonl", CAPITALS)), tmp_path / "whole"
        assert measure(*arguments, f"run_dir={whole}") == 0
    run_dir = tmp_path / "two"
    command = python("dlm.evaluate", *arguments, "trainer=ddp", "trainer.devices=2", f"run_dir={run_dir}")
    done = running.run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows_of(run_dir / "results.jsonl") == rows_of(whole / "results.jsonl")
    assert answers(run_dir) == answers(whole)
    assert len(list((run_dir / "shards").iterdir())) == 2


@pytest.mark.slow
def test_a_sweep_is_one_run_a_job_and_one_that_fails_leaves_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "Capital of France?", "family": "capital"}])
    arguments = ["task=jsonl", "task.checker=demo", f"data.path={path}", "data.limit=1,0", *QUICK]
    swept = ("algorithm=dual_cache,dinfer_blockwise", f"hydra.sweep.dir={tmp_path / 'runs'}")
    done = running.run(python("dlm.evaluate", "-m", *arguments, *swept), tmp_path)
    assert done.returncode == 2
    assert "data.limit=0: must be at least 1" in done.stderr
    runs = [path.parent for path in (tmp_path / "runs").glob("*/summary.json")]
    assert len(runs) == 2
    assert [summary_of(run)["exact_match"] for run in runs] == [1.0, 1.0]
    configs = {yaml.safe_load((run / "config.yaml").read_text())["algorithm"] for run in runs}
    assert configs == {"dual_cache", "dinfer_blockwise"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=jsonl", "data.path=x"], "task.checker is not set: write task.checker=<value>"),
        (["task=gsm8k"], "data.path is not set: write data.path=<value>"),
        (["task=math", "data.path=/nowhere"], "data.path=/nowhere: no such file"),
        (["checking.k=[1,5]"], "checking.k=5: generation.n=1 samples are too few; write generation.n=5 or more"),
        (["checking.k=[0]"], "checking.k=0: must be at least 1"),
        (["checking.k=[]"], "checking.k=[]: write [1]"),
        (["checking.level=1"], "checking.level=1.0: must be between 0 and 1"),
        (["checking.seconds=0"], "checking.seconds=0.0: must be above 0"),
        (["checking.memory_mib=1"], "checking.memory_mib=1: must be at least 128"),
        (["checking.threads=0"], "checking.threads=0: must be at least 1"),
        (["published.score=50"], "published.source is not set"),
        (["published.score=500", "published.source=x"], "published.score=500.0: must be a percentage"),
        (["published.score=5", "published.source=x", "published.tolerance=-1"], "published.tolerance=-1.0"),
        (["generation.temperature=9"], "generation.temperature=9.0"),
    ],
)
def test_what_is_wrong_is_told_by_name(overrides: list[str], said: str) -> None:
    assert said in refusal(*overrides)


@pytest.mark.parametrize("override", ["generation.n=2", "sampler=fixed", "algorithm=basic", "generation.gen_length=8"])
def test_settings_of_decoding_are_refused_where_nothing_is_decoded(override: str, tmp_path: Path) -> None:
    path = write(tmp_path / "choices.jsonl", CAPITALS)
    said = refusal("task=multiple_choice", f"data.path={path}", override)
    assert f"nothing is decoded: {override} would have no effect" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.scheme=foo"], "task.scheme=foo: no such scheme; choose one of llada_mc"),
        (["task.scheme_options={mc: 8}"], "task.scheme_options: "),
        (["task.scheme_options={mc_num: 0}"], "mc_num=0"),
    ],
)
def test_a_wrong_scheme_is_refused_before_there_is_a_folder(overrides: list[str], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "choices.jsonl", CAPITALS)
    with pytest.raises(ConfigError) as raised:
        measure("task=multiple_choice", f"data.path={path}", *overrides, f"run_dir={tmp_path / 'run'}")
    assert said in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_family_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has a family of splitt"):
        measure("task.only=[splitt]", f"run_dir={tmp_path / 'run'}")


TASKS = sorted(path.stem for path in (conf_dir() / "task").glob("*.yaml"))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_with_a_name_of_its_own_and_a_comment_a_key(task: str) -> None:
    register()
    assert compose_config("evaluate", [f"task={task}"]).task.name == task
    text = (conf_dir() / "task" / f"{task}.yaml").read_text()
    for line in text.partition("_self_")[2].splitlines():
        key, colon, value = line.strip().partition(":")
        if colon and value.strip() and key not in ("name", "- override /data", "template"):
            assert "#" in value, line


def test_what_predict_and_evaluate_share_is_the_same() -> None:
    """`conf/evaluate.yaml` repeats those parts of `conf/predict.yaml`, word for word."""
    lines = (conf_dir() / "evaluate.yaml").read_text().splitlines()
    for line in (conf_dir() / "predict.yaml").read_text().splitlines()[3:]:
        assert line in lines, line
