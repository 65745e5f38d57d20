"""Bad input and harm: a clear error, before weights where it can be, and no finished answer lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlm.cli.command_line import compose_config
from dlm.data.prompts import Prompt
from dlm.distributed.heartbeat import StopFlag
from dlm.errors import CheckpointError, ConfigError, DataError, DLMError, IncompleteRunError, RunError
from dlm.predict import run as predict
from dlm.runs import shards
from tests import running
from tests.running import TINY, answers, rows_of, shard_rows

GOLDEN = Path(__file__).parent / "goldens" / "llada"


def decode(*overrides: str) -> int:
    """Run in this process."""
    return predict(compose_config("predict", overrides), overrides)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return running.write_prompts(tmp_path / "prompts.jsonl", 12)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole LLaDA checkpoint of a few kilobytes, with a tokenizer."""
    from dlm.demo import CHECKPOINT

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(CHECKPOINT / name, folder)
    return folder


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights fails the test."""
    import dlm.models.io.loading as loading

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "load_checkpoint", refuse)
    monkeypatch.setattr(loading, "random_checkpoint", refuse)


def broken(error: type[DLMError], said: str, *overrides: str) -> None:
    with pytest.raises(error) as raised:
        decode(*overrides)
    assert said in str(raised.value)


def test_a_prompt_file_that_does_not_exist(no_weights: None, tmp_path: Path) -> None:
    broken(ConfigError, "no such file", *TINY, f"data.path={tmp_path / 'nowhere'}", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_zero_prompts(no_weights: None, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    broken(DataError, "holds no prompt", *TINY, f"data.path={tmp_path / 'empty'}", f"run_dir={tmp_path / 'run'}")


def test_an_output_folder_that_cannot_be_made(no_weights: None, prompts: Path) -> None:
    broken(RunError, "cannot write to", *TINY, f"data.path={prompts}", f"run_dir={prompts / 'run'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission(no_weights: None, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    broken(RunError, "Permission denied", *TINY, f"data.path={prompts}", f"run_dir={tmp_path / 'locked' / 'run'}")


def test_a_kernel_file_system_is_no_output_folder(no_weights: None, prompts: Path) -> None:
    broken(RunError, "choose another place", *TINY, f"data.path={prompts}", "run_dir=/proc/dlm")


def test_a_run_resumed_with_another_configuration(no_weights: None, prompts: Path, tmp_path: Path) -> None:
    begin = [*TINY, f"data.path={prompts}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(AssertionError, match="weights were read"):
        decode(*begin)
    broken(ConfigError, "generation.gen_length: begun with 32, now 16", *begin, "generation.gen_length=16")


def test_a_run_resumed_with_other_prompts(no_weights: None, prompts: Path, tmp_path: Path) -> None:
    begin = [*TINY, f"data.path={prompts}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(AssertionError, match="weights were read"):
        decode(*begin)
    running.write_prompts(prompts, 11)
    broken(DataError, "12 then, 11 now", *begin)


def test_a_truncated_weight_file(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    arguments = [f"model.path={checkpoint}", "data=jsonl", f"data.path={prompts}", f"run_dir={tmp_path / 'run'}"]
    broken(CheckpointError, "truncated", *arguments)


def test_a_config_of_another_family(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    arguments = [f"model.path={checkpoint}", "data=jsonl", f"data.path={prompts}", f"run_dir={tmp_path / 'run'}"]
    broken(CheckpointError, "LlamaForCausalLM", *arguments)
    broken(CheckpointError, "LlamaForCausalLM", *arguments, "algorithm=auto", f"run_dir={tmp_path / 'auto'}")


def test_a_folder_without_a_tokenizer(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (checkpoint / name).unlink()
    arguments = [f"model.path={checkpoint}", "data=jsonl", f"data.path={prompts}", f"run_dir={tmp_path / 'run'}"]
    broken(CheckpointError, "no usable tokenizer", *arguments)


def test_a_prompt_longer_than_the_model_allows_costs_itself_alone(prompts: Path, tmp_path: Path) -> None:
    row = {"id": "long", "prompt": "word " * 2000}
    prompts.write_text(json.dumps(row) + "\n" + prompts.read_text())
    assert decode(*TINY, f"data.path={prompts}", f"run_dir={tmp_path / 'run'}") == 0
    first, *others = rows_of(tmp_path / "run" / "predictions.jsonl")
    assert first["id"] == "long"
    assert "shorten one of them" in first["error"]["message"]
    assert all("error" not in row for row in others)


def test_messages_in_a_run_without_chat_template_cost_themselves_alone(prompts: Path, tmp_path: Path) -> None:
    row = {"id": "chat", "prompt": [{"role": "user", "content": "hello"}]}
    prompts.write_text(json.dumps(row) + "\n" + prompts.read_text())
    base = [*TINY, f"data.path={prompts}"]
    assert decode(*base, f"run_dir={tmp_path / 'off'}") == 0
    assert "chat_template=true" in rows_of(tmp_path / "off" / "predictions.jsonl")[0]["error"]["message"]
    assert decode(*base, "data.chat_template=true", f"run_dir={tmp_path / 'on'}") == 0
    assert "error" not in rows_of(tmp_path / "on" / "predictions.jsonl")[0]


def test_a_disk_that_fills_up_loses_no_finished_answer(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*TINY, f"data.path={prompts}", "decoder.max_num_seqs=2"]
    assert decode(*arguments, f"run_dir={tmp_path / 'whole'}") == 0
    write, left = os.write, [5]

    def filling(file: int, data: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data) if left[0] else write(file, data[:10])

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(shards.os, "write", filling)
        broken(RunError, "No space left on device; the 4 answers before stay there", *arguments, f"run_dir={run_dir}")
    assert len(shard_rows(run_dir)) == 4
    assert decode(*arguments, f"run_dir={run_dir}") == 0
    assert answers(run_dir) == answers(tmp_path / "whole")


def test_missing_answers_are_never_a_success(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason: here a switch that is thrown without a signal after a few answers."""
    from dlm.pipeline.writer import ShardWriter

    append, switches = ShardWriter._append, []
    create = StopFlag.__init__

    def remembered(self: StopFlag) -> None:
        create(self)
        switches.append(self)

    def stopping(self: ShardWriter, prompt: Prompt, row: dict[str, Any]) -> None:
        append(self, prompt, row)
        if self.shard.rows == 3:
            switches[-1].throw()

    monkeypatch.setattr(StopFlag, "__init__", remembered)
    monkeypatch.setattr(ShardWriter, "_append", stopping)
    run_dir = tmp_path / "run"
    arguments = [*TINY, f"data.path={prompts}", "decoder.max_num_seqs=2", f"run_dir={run_dir}"]
    with pytest.raises(IncompleteRunError, match=r"\d of 12 prompts are answered and kept"):
        decode(*arguments)
    assert not (run_dir / "predictions.jsonl").exists()
    monkeypatch.undo()
    assert decode(*arguments) == 0
    assert len(shard_rows(run_dir)) == 12


@pytest.mark.slow
def test_fewer_prompts_than_ranks(tmp_path: Path) -> None:
    prompts = running.write_prompts(tmp_path / "one.jsonl", 1)
    arguments = [*TINY, f"data.path={prompts}", "trainer=ddp", "trainer.devices=2", f"run_dir={tmp_path / 'run'}"]
    done = running.run(running.python("dlm.predict", *arguments), tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "run" / "predictions.jsonl")) == 1
    assert not running.processes_of(tmp_path / "run")


@pytest.mark.slow
def test_torchrun_with_other_numbers_than_the_trainer(tmp_path: Path) -> None:
    prompts = running.write_prompts(tmp_path / "p.jsonl", 2)
    arguments = [*TINY, f"data.path={prompts}", "trainer=ddp", "trainer.devices=1", f"run_dir={tmp_path / 'run'}"]
    done = running.run(running.torchrun(2, "dlm.predict", *arguments), tmp_path)
    assert done.returncode != 0
    assert "each would decode everything" in done.stderr
    assert not running.processes_of(tmp_path / "run")
