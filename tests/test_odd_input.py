"""Whatever a file of prompts or a run folder holds, predict and evaluate go on, or say why they cannot."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dlm.cli.command_line import compose_config
from dlm.demo import CHECKPOINT
from dlm.distributed.heartbeat import WorkerStatus
from dlm.distributed.processes import machine, process_birth
from dlm.errors import CheckpointError, DataError, RunError
from dlm.evaluate import run as evaluate
from dlm.evaluation.config import register
from dlm.merge import run as merge
from dlm.predict import run as predict
from dlm.runs.shards import to_line
from dlm.text import TextCodec
from tests.pipeline.rows import row
from tests.running import TINY, answers, rows_of

GOOD = b'{"id": "%d", "prompt": "Sort %d 2 1."}'
ODD = {
    "beyond": b'{"id": "beyond", "prompt": "x", "score": 1e999}',
    "inside": b'{"id": "inside", "prompt": "x", "score": {"a": [1, {"b": -1e400}]}}',
    "digits": b'{"id": "digits", "prompt": "x", "n": ' + b"7" * 5000 + b"}",
    "deep": b'{"id": "deep", "prompt": "x", "a": ' + b"[" * 900 + b"]" * 900 + b"}",
    "text": b'{"id": "text", "prompt": "x\\ud800"}',
    "note": b'{"id": "note", "prompt": "x", "note": ["\\udfff"]}',
    "line-7": b'{"id": "half\\ud800", "prompt": "x"}',
    "line-8": b'{"id": {"a": [1]}, "prompt": "x"}',
    "line-9": b'{"id": 1e999, "prompt": "x"}',
    "line-10": b"\x00\x00\x00\x00",
    "line-11": b"\xff\xfe{}",
    "long": b'{"id": "long", "prompt": "' + b"long " * 50_000 + b'"}',
}
"""Rows that get an error, by the name that they then have."""
PLAIN: list[dict[str, Any]] = [
    {"id": "nul", "prompt": "Sort\x00 3 1."},
    {"id": "\x00", "prompt": "Sort 2 1."},
    {"id": "名前 " * 50, "prompt": "Sort 2 1."},
    {"id": 10**4000, "prompt": "Sort 2 1.", "big": 10**4200},
    {"id": -5, "prompt": "Sort 2 1."},
    {"id": "split", "prompt": "Please summarise birds", "family": "split"},
    {"id": "families", "prompt": "Split x", "family": ["split"], "n": None, "seed": {}, "prompt_ids": "?", "text": 3},
    {"id": "names", "prompt": "Sort 2 1.", "id2": 1, "sample": 7, "error": "none", "row": [], "token_ids": None},
]
"""Rows that are decoded, however odd they look."""


def decode(*overrides: str) -> int:
    return predict(compose_config("predict", overrides), overrides)


def measure(*overrides: str) -> int:
    register()
    return evaluate(compose_config("evaluate", overrides), overrides)


def lines(path: Path, rows: Sequence[bytes | dict[str, Any]]) -> str:
    """A file of rows, as an override."""
    path.write_bytes(b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in rows))
    return f"data.path={path}"


QUICK = ("generation.gen_length=16", "generation.block_length=16", "decoder.max_num_seqs=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A run over odd rows with plain ones between them, and how it was started."""
    folder = tmp_path_factory.mktemp("odd")
    rows = [*ODD.values(), *PLAIN, *(GOOD % (n, n) for n in range(3))]
    started = [*TINY, *QUICK, lines(folder / "p.jsonl", rows), f"run_dir={folder / 'run'}"]
    assert decode(*started) == 0
    return started, folder / "run"


def test_an_odd_row_costs_itself_alone(run: tuple[list[str], Path]) -> None:
    found = answers(run[1])
    assert [one["id"] for one in found if "error" in one] == list(ODD)
    assert [one["id"] for one in found if "error" not in one] == [*(str(one["id"]) for one in PLAIN), "0", "1", "2"]
    assert all(len(one["error"]["message"]) < 300 for one in found if "error" in one)
    kept = {one["id"]: one.get("row") for one in found}
    assert kept["families"] == {"family": ["split"], "n": None, "seed": {}, "prompt_ids": "?", "text": 3}
    assert json.loads((run[1] / "summary.json").read_text())["exact_match"] is None


def test_a_run_over_odd_rows_is_resumed(run: tuple[list[str], Path]) -> None:
    started, folder = run
    before = answers(folder)
    (shard,) = (folder / "shards").iterdir()
    written = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(written[::2]))
    assert decode(*started) == 0
    assert answers(folder) == before


def test_the_demos_rows_are_checked_where_they_are_the_demos(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert decode("model=random", "data.limit=2", *QUICK, f"run_dir={run_dir}") == 0
    assert json.loads((run_dir / "summary.json").read_text())["checked"] == 2


def test_damaged_shards_cost_the_rows_that_are_damaged(run: tuple[list[str], Path], tmp_path: Path) -> None:
    started, folder = run
    run_dir = tmp_path / "run"
    shutil.copytree(folder, run_dir)
    more = [row("0", sample=[1]), row("0", sample=5), {"id": "1", "text": "?"}, row("1", row=[]), row("nobody")]
    damage = b"".join(map(to_line, more)) + b"[" * 200_000 + b"\n" + b'{"id": ' + b"[" * 200_000 + b"\n\xff\n"
    shard = next((run_dir / "shards").iterdir())
    shard.write_bytes(damage + shard.read_bytes())
    (run_dir / "summary.json").write_bytes(b"{")
    assert decode(*started[:-1], f"run_dir={run_dir}") == 0
    assert answers(run_dir) == answers(folder)
    assert json.loads((run_dir / "summary.json").read_text())["answers"] == len(PLAIN) + 3


def test_a_folder_without_hard_links_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    assert decode(*TINY, *QUICK, lines(tmp_path / "p", [GOOD % (1, 1)]), f"run_dir={tmp_path / 'run'}") == 0
    assert [one["id"] for one in answers(tmp_path / "run")] == ["1"]


def test_another_start_in_the_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "run" / "claims" / "other"
    other.mkdir(parents=True)
    status = WorkerStatus("rank0", machine(), os.getpid(), process_birth(os.getpid()), state="running")
    (other / "rank0.status.json").write_text(json.dumps(asdict(status)))
    assert decode(*TINY, *QUICK, lines(tmp_path / "p", [GOOD % (1, 1)]), f"run_dir={tmp_path / 'run'}") == 0
    assert capsys.readouterr().err.count("another start works in this run folder: attempt other") == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([b"not json", b'{"prompt": "'], r"none of the 2 rows can be decoded. The first, 'line-1': broken JSON"),
        ([{"text": "x"}], "no field 'prompt', only 'text'; see data.prompt_field"),
        ([b"\x1f\x8b\x08\x00\x00"], "is gzip, not JSON lines: gunzip it"),
        ([], "holds no prompt"),
    ],
)
def test_a_file_without_any_prompt_is_refused_before_there_is_a_folder(
    rows: list[Any], said: str, tmp_path: Path
) -> None:
    for start, task in ((decode, ()), (measure, ("task=jsonl", "task.checker=exact", "task.answer_field=prompt"))):
        run_dir = tmp_path / start.__name__
        with pytest.raises(DataError) as raised:
            start("model=random", *task, "data=jsonl", lines(tmp_path / "p", rows), f"run_dir={run_dir}")
        assert said in str(raised.value)
        assert not run_dir.exists()


def test_a_run_without_any_answer_ends_with_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "p", [{"id": n, "prompt": "long " * 2000} for n in range(3)])
    for _ in range(2):  # decoded, then put together again
        with pytest.raises(DataError, match=r"none of the 3 prompts has an answer\. The first, '0': prompt of 6001"):
            decode(*TINY, *QUICK, path, f"run_dir={tmp_path / 'run'}")
    assert len(rows_of(tmp_path / "run" / "predictions.jsonl")) == 3
    arguments = (f"run_dir={tmp_path / 'run'}",)
    with pytest.raises(DataError, match="none of the 3 prompts has an answer"):
        merge(compose_config("merge", arguments), arguments)


def test_ten_megabytes_are_not_tokenized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, seen = TextCodec.encode, []

    def watched(codec: TextCodec, content: Any) -> tuple[int, ...]:
        seen.append(len(content))
        return encode(codec, content)

    monkeypatch.setattr(TextCodec, "encode", watched)
    path = lines(tmp_path / "p", [{"id": "huge", "prompt": "ten megabytes " * 750_000}, GOOD % (1, 1)])
    assert decode(*TINY, *QUICK, path, f"run_dir={tmp_path / 'run'}") == 0
    huge, _ = answers(tmp_path / "run")
    assert "the prompt has 10500000 characters, more than the 1024 tokens of this model" in huge["error"]["message"]
    assert max(seen) < 100


def test_a_resume_with_another_model_is_refused(tmp_path: Path) -> None:
    model, run_dir = tmp_path / "model", tmp_path / "run"
    shutil.copytree(CHECKPOINT, model)
    rows = lines(tmp_path / "p", [GOOD % (n, n) for n in range(4)])
    started = ["model=checkpoint", f"model.path={model}", "data=jsonl", rows, *QUICK, f"run_dir={run_dir}"]
    assert decode(*started) == 0
    before = answers(run_dir)
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, model / "model.safetensors")
    assert decode(*started) == 0, "nothing is left to decode, and nothing is decoded"
    (shard,) = (run_dir / "shards").iterdir()
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(CheckpointError, match=r"holds answers of another model.*\n  model\.safetensors: changed"):
        decode(*started)
    shutil.copyfile(CHECKPOINT / "model.safetensors", model / "model.safetensors")
    assert decode(*started) == 0
    assert answers(run_dir) == before


@pytest.mark.parametrize("name", ["index.json", "config.yaml", "model.json"])
def test_a_torn_file_of_a_run_is_named_and_can_be_deleted(
    name: str, run: tuple[list[str], Path], tmp_path: Path
) -> None:
    started, folder = run
    run_dir = tmp_path / "run"
    shutil.copytree(folder, run_dir)
    shard = next((run_dir / "shards").iterdir())
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:-1]))
    (run_dir / name).write_bytes((run_dir / name).read_bytes()[:20])
    again = [*started[:-1], f"run_dir={run_dir}"]
    with pytest.raises(RunError, match=rf"{name} is damaged \(.*\): delete it and start the run again"):
        decode(*again)
    (run_dir / name).unlink()
    assert decode(*again) == 0
    assert answers(run_dir) == answers(folder)


def test_evaluate_goes_on_over_odd_rows(tmp_path: Path) -> None:
    asked = [
        {"question": "1 + 1?", "answer": "#### 2", "family": [], "n": {}, "right": "A", "choices": 3},
        b'{"question": "2 + 2?", "answer": 1e999}',
        b'{"question": "3 + 3?", "answer": "\\ud800"}',
        {"question": "4 + 4?", "answer": {"deep": [1]}},
        {"question": "long " * 50_000, "answer": "#### 1"},
        {"question": "5 + 5?", "answer": "#### 10", "id": [3]},
    ]
    run_dir = tmp_path / "run"
    started = ["task=gsm8k", "model=random", lines(tmp_path / "p", asked), *QUICK, "generation.steps=16"]
    started += ["task.group_field=family", f"run_dir={run_dir}"]
    assert measure(*started) == 0
    states = [(one["id"], one["state"]) for one in rows_of(run_dir / "results.jsonl")]
    assert states == [
        ("line-1", "judged"),
        ("line-2", "unreadable"),
        ("line-3", "unreadable"),
        ("line-4", "judged"),
        ("line-5", "no answer"),
        ("line-6", "unreadable"),
    ]
    (run_dir / "summary.json").write_bytes(b"[")
    assert measure(*started) == 0
    assert json.loads((run_dir / "summary.json").read_text())["answers"] == 2


def test_choices_that_are_odd_cost_their_row_alone(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Sky?", "choices": ["blue", "red"], "answer": 0, "scored": 1, "options": [], "right": "x"},
        {"prompt": "Sky?", "choices": ["blue", "red " * 300_000], "answer": 0},
        {"prompt": "Sky?", "choices": ["blue", "red"], "answer": "²"},
        {"prompt": "Sky?", "choices": ["blue", "red"], "answer": "9" * 5000},
        {"prompt": "Sky?", "choices": {"text": ["blue", "red"], "label": 3}, "answer": 1},
    ]
    run_dir = tmp_path / "run"
    scheme = ("task.scheme=ar", "model=random")
    assert measure("task=multiple_choice", *scheme, lines(tmp_path / "p", rows), f"run_dir={run_dir}") == 0
    states = [one["state"] for one in rows_of(run_dir / "results.jsonl")]
    assert states == ["judged", "no answer", "unreadable", "unreadable", "judged"]
