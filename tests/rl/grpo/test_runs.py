"""Runs of `python -m dlm.rl.grpo` on the demo checkpoint: what they leave, how they go on, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dlm import LLM
from dlm.cli.command_line import compose_config
from dlm.decoding.noise import seed_of
from dlm.demo import CHECKPOINT
from dlm.errors import ConfigError, DataError, RequestError, RunError
from dlm.models.io.loading import load_checkpoint, save_checkpoint
from dlm.models.io.model_source import CheckpointSource
from dlm.rl import Rollouts
from dlm.rl.grpo.__main__ import run
from dlm.rl.grpo.config import check_grpo, register
from dlm.rl.grpo.progress import TrainingProgress
from dlm.rl.grpo.record import Record
from dlm.runs.lock import locked
from dlm.sampling_params import SamplingParams
from tests import running
from tests.rounding import of_a_forward

SMALL = (
    "experiment=demo_grpo", "generation.algorithm=dual_cache", "generation.threshold=0.9", "prompts_per_step=4",
    "group_size=4", "steps=4", "data.limit=16", "validation.prompts=4", "validation.samples=2", "validation.every=2",
)  # fmt: skip
AS_TRAINED = SamplingParams(
    algorithm="dual_cache", threshold=0.9, gen_length=16, block_length=16, steps=16, temperature=1.0
)
ROUNDING = of_a_forward(load_checkpoint(CHECKPOINT).backbone.config, torch.float32, 64)
"""Of a log-probability, as a share of it; a divergence is half of its square."""
HERE = "tests.rl.grpo.rewarding"
CLOCKED = ("seconds", "seconds_rollout", "seconds_reward", "seconds_score", "seconds_update")


def compose_plain(*overrides: str):
    register()
    return compose_config("grpo", overrides)


def compose(*overrides: str):
    return compose_plain(*SMALL, *overrides)


def train(folder: Path, *overrides: str) -> Record:
    """A run of this process; it has to end well."""
    words = [*overrides, f"run_dir={folder}"]
    assert run(compose(*words), words) == 0
    return Record(folder)


def weights(record: Record) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(record.checkpoint).backbone.state_dict())


def figures(record: Record) -> list[dict]:
    """The lines of the log, without what the clock says."""
    return [{name: value for name, value in row.items() if name not in CLOCKED} for row in record.rows()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Record:
    return train(tmp_path_factory.mktemp("straight"))


def test_a_run_leaves_a_record_and_a_model(straight, capsys):
    header, *rows = map(json.loads, straight.training.read_text().splitlines())
    assert header["command"].startswith("python -m dlm.rl.grpo")
    assert header["seed"] == 0
    assert [row["step"] for row in rows if "reward" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "validation_reward" in row] == [0, 2, 4]
    for row in rows:
        if "reward" in row:
            assert 0 <= row["reward"] <= 1
            assert row["kl"] >= 0
            assert row["nfe"] >= 1
            assert row["tokens"] > 0
            assert row["seconds_rollout"] > 0
            assert row["gradient_norm"] > 0
    assert rows[1]["kl"] < ROUNDING**2 < rows[2]["kl"], "the first step is made by the reference itself"
    summary = json.loads(straight.summary.read_text())
    assert summary["reward_before"] == rows[0]["validation_reward"]
    assert sum(summary["share_of_step_time"].values()) == pytest.approx(1, abs=0.01)
    answers = [json.loads(line) for line in straight.answers.read_text().splitlines()]
    assert len(answers) == 3 * 4 * 2
    measured = [row["reward"] for row in answers if row["step"] == 4]
    assert sum(measured) / len(measured) == pytest.approx(summary["reward_after"])


def test_the_model_that_is_left_is_the_policy(straight):
    """Its answers are those of the last measurement, and not those of the first."""
    rows = [json.loads(line) for line in straight.answers.read_text().splitlines()]
    last = [row for row in rows if row["step"] == 4 and row["sample"] == 0]
    rollouts = Rollouts.load(straight.checkpoint)
    for row in last:
        params = replace(AS_TRAINED, seed=seed_of(0, f"validation, {row['id']}, turn 0"))
        [rollout] = rollouts.generate([row["prompt"]], [params])
        assert rollouts.codec.decode(rollout.token_ids) == row["text"]
    before = load_checkpoint(CheckpointSource("demo").tokenizer_folder()).backbone.state_dict()
    after = weights(straight)
    assert any(not torch.equal(after[name], before[name].float()) for name in before)


def test_a_run_goes_on_as_if_it_had_not_been_stopped(straight, tmp_path):
    """To the bit: weights, optimizer, prompts and noise."""
    record = train(tmp_path, "keep_every=2")
    cut = torch.load(record.state, weights_only=True)
    assert cut["step"] == 4
    half = tmp_path / "half"
    config = compose(f"run_dir={half}", "keep_every=2")
    stopper = Stopper(half, after=2)
    with stopper:
        assert run(config, [f"run_dir={half}"]) == 128 + signal.SIGINT
    assert not Record(half).checkpoint.exists()
    assert torch.load(Record(half).state, weights_only=True)["step"] == stopper.stopped_at < 4
    assert run(compose(f"run_dir={half}", "keep_every=2"), [f"run_dir={half}"]) == 0
    assert figures(Record(half)) == figures(straight)
    one, other = weights(straight), weights(Record(half))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_another_process_stops_is_not_through(tmp_path, monkeypatch):
    told = TrainingProgress._tell

    def tell(progress, trainer, number, figures):
        told(progress, trainer, number, figures)
        if number == 2:
            progress.stop.throw()

    monkeypatch.setattr(TrainingProgress, "_tell", tell)
    assert run(compose(f"run_dir={tmp_path}"), []) == 128 + signal.SIGTERM
    record = Record(tmp_path)
    assert record.steps_kept() == 2
    assert not record.checkpoint.exists()
    assert not record.summary.exists()


def test_a_run_that_was_killed_goes_on_from_what_it_kept(straight, tmp_path):
    """To the bit, whatever it had done since: step 3 has been told and not been kept."""
    command, record = [sys.executable, "-c", KILLED, *SMALL, "keep_every=1", f"run_dir={tmp_path}"], Record(tmp_path)
    assert running.run(command, Path.cwd()).returncode == -signal.SIGKILL
    assert record.steps_kept() == 2
    assert [row["step"] for row in record.rows() if "reward" in row] == [1, 2, 3]
    assert run(compose(f"run_dir={tmp_path}", "keep_every=1"), []) == 0
    assert figures(record) == figures(straight)
    one, other = weights(straight), weights(record)
    assert all(torch.equal(one[name], other[name]) for name in one)


KILLED = """
import os, signal
from dlm.rl.grpo.__main__ import main
from dlm.rl.grpo.progress import TrainingProgress

told = TrainingProgress._tell

def tell(progress, trainer, number, figures):
    told(progress, trainer, number, figures)
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)

TrainingProgress._tell = tell
main()
"""
"""`python -m dlm.rl.grpo` that is killed while it tells of step 3."""


class Stopper:
    """Sends this process SIGINT while step `after` is being told."""

    def __init__(self, folder: Path, after: int) -> None:
        self.after, self.stopped_at = after, 0

    def __enter__(self) -> None:
        self._tell = TrainingProgress._tell

        def tell(progress, trainer, number, figures):
            self._tell(progress, trainer, number, figures)
            if number == self.after and "reward" in figures:
                self.stopped_at = number
                os.kill(os.getpid(), signal.SIGINT)
                running.wait_until(lambda: bool(progress.stop), "the signal was heard")

        TrainingProgress._tell = tell

    def __exit__(self, *error: object) -> None:
        TrainingProgress._tell = self._tell


def test_a_run_that_is_through_does_nothing_more(straight):
    before = straight.training.read_text()
    assert run(compose(f"run_dir={straight.folder}"), []) == 0
    assert straight.training.read_text() == before


def test_another_run_does_not_go_on_in_its_folder(straight):
    with pytest.raises(ConfigError, match=r"prompts_per_step: begun with 4, now 2"):
        run(compose(f"run_dir={straight.folder}", "prompts_per_step=2"), [])


@pytest.mark.slow
def test_two_processes_train_as_one_does(straight, tmp_path):
    command = running.python("dlm.rl.grpo", *SMALL, f"run_dir={tmp_path}", "trainer=ddp", "trainer.devices=2")
    done = running.run(command, Path.cwd())
    assert done.returncode == 0, done.stderr
    record = Record(tmp_path)
    one, both = weights(straight), weights(record)
    assert max(float((one[name] - both[name]).abs().max()) for name in one) < 2e-4
    for alone, shared in zip(figures(straight), figures(record), strict=True):
        assert alone.keys() == shared.keys()
        if alone["step"] <= 1:
            assert shared == pytest.approx(alone, rel=ROUNDING, abs=ROUNDING**2)


@pytest.mark.parametrize("likelihood", ["d1_onestep", "coupled", "step_map", "llada_mc", "block_causal", "ar"])
def test_every_likelihood_trains_with_several_updates_of_a_step(likelihood, tmp_path):
    record = train(tmp_path, f"likelihood={likelihood}", "steps=1", "updates=3", "objective.kl=0.1")
    [row] = [row for row in record.rows() if "reward" in row]
    assert 0 < row["kl"] < 0.5
    assert 0 <= row["clipped"] <= 1
    assert row["gradient_norm"] > 0


def test_a_reward_reads_what_a_reader_sees(tmp_path):
    """The text before a stop string, as the library gives it."""
    record = train(tmp_path, "generation.stop=['+']", "steps=1", "reward=function", f"reward.path={HERE}:length")
    answers = [json.loads(line) for line in record.answers.read_text().splitlines()]
    with LLM("demo", dtype="float32") as llm:
        for row in answers[:4]:
            params = replace(AS_TRAINED, n=2, stop=("+",), seed=seed_of(0, f"validation, {row['id']}, turn 0"))
            [out] = llm.generate([row["prompt"]], params, use_tqdm=False)
            sample = out["outputs"][row["sample"]]
            if row["step"] == 0:
                assert sample["text"] == row["text"]
                assert row["reward"] == len(sample["text"])
                assert "+" not in row["text"]


def test_a_copy_in_half_precision_decodes_what_is_trained(tmp_path):
    record = train(tmp_path, "rollout_dtype=bfloat16", "precision=bf16-mixed", "steps=2")
    assert [row["step"] for row in record.rows() if "reward" in row] == [1, 2]
    assert weights(record)["embedding.weight"].dtype == torch.float32


def test_half_precision_weights_are_trained_in_float32_unless_asked_for(tmp_path):
    """Small updates are lost on them."""
    source = CheckpointSource("demo").load(torch.device("cpu"))
    save_checkpoint(source.backbone.bfloat16(), source.special, tmp_path / "half", family=source.family)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(CHECKPOINT / name, tmp_path / "half")
    model = ("model=checkpoint", f"model.path={tmp_path / 'half'}", "steps=1", "validation.prompts=0")
    assert weights(train(tmp_path / "auto", *model))["embedding.weight"].dtype == torch.float32
    asked = train(tmp_path / "asked", *model, "model.dtype=bfloat16")
    assert weights(asked)["embedding.weight"].dtype == torch.bfloat16


def test_a_reward_that_fails_costs_its_answers_alone(tmp_path, capsys):
    record = train(tmp_path, "reward=function", f"reward.path={HERE}:picky", "steps=1")
    summary, said = json.loads(record.summary.read_text()), capsys.readouterr().out
    answers = [json.loads(line) for line in record.answers.read_text().splitlines()]
    failed = [row for row in answers if row["not_judged"]]
    assert 0 < len(failed) < len(answers)
    assert all(row["reward"] == 0.0 and row["not_judged"] == f"KeyError: {row['text']!r}" for row in failed)
    [step] = [row for row in record.rows() if "reward" in row]
    assert summary["answers_not_judged"] == len(failed) + step["not_judged"]
    assert said.count("the reward failed on an answer, which scores 0: KeyError") == 1
    assert f"{summary['answers_not_judged']} answers that the reward failed on score 0" in said


def test_a_reward_that_never_works_ends_the_run(tmp_path):
    with pytest.raises(RunError, match=r"the reward failed on all of the first 8 answers: KeyError") as error:
        train(tmp_path, "reward=function", f"reward.path={HERE}:broken")
    assert "what was kept" not in str(error.value), "nothing was"


def test_csv_and_wandb_are_told(tmp_path):
    train(tmp_path / "csv", "logger=csv", "steps=1")
    table = (tmp_path / "csv" / "csv" / "metrics.csv").read_text()
    assert "validation_reward" in table
    assert "seconds_rollout" in table
    train(tmp_path / "wandb", "logger=wandb", "steps=1")
    assert list((tmp_path / "wandb" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_state_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"half")
    with pytest.raises(RunError, match=r"last.ckpt cannot be read .* remove it to start over"):
        run(compose(f"run_dir={tmp_path}"), [])


def test_a_run_that_died_while_its_model_was_written_writes_it_again(straight, tmp_path):
    folder = shutil.copytree(straight.folder, tmp_path / "again")
    record = Record(folder)
    shutil.rmtree(record.checkpoint)
    record.summary.unlink()
    assert run(compose(f"run_dir={folder}"), []) == 0
    one, other = weights(straight), weights(record)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert figures(record) == figures(straight)
    assert json.loads(record.summary.read_text())["reward_after"] == pytest.approx(
        json.loads(straight.summary.read_text())["reward_after"]
    )


def test_a_run_can_be_lengthened(straight, tmp_path):
    """To what it would have been; only the measurement at its first end is more."""
    folder = shutil.copytree(train(tmp_path / "short", "steps=2").folder, tmp_path / "long")
    assert run(compose(f"run_dir={folder}", "steps=4"), []) == 0
    one, other = weights(straight), weights(Record(folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert figures(Record(folder)) == figures(straight)


def test_a_run_cannot_be_shortened(straight):
    with pytest.raises(ConfigError, match=r"steps=2: this run has made 4; write at least that many"):
        run(compose(f"run_dir={straight.folder}", "steps=2"), [])


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(RunError, match=r"another process is at work in .*; wait for it"):
        run(compose(f"run_dir={tmp_path}"), [])


def test_a_run_does_not_go_on_with_other_prompts(straight, tmp_path):
    folder = shutil.copytree(straight.folder, tmp_path / "again")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "digest": "0"}))
    with pytest.raises(DataError, match="the prompts are not those that"):
        run(compose(f"run_dir={folder}"), [])


def test_prompts_that_do_not_fit_are_named_before_the_first_step(tmp_path):
    rows = [{"id": f"row{number}", "prompt": "a" * (5 + 3000 * (number == 7))} for number in range(16)]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "data=jsonl", f"data.path={file}", "reward=function", f"reward.path={HERE}:length", "validation.prompts=4",
        f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"row row7: .*\d+ positions.*; fix it"):
        run(compose_plain(*words), words)
    with pytest.raises(RequestError, match=r"no prompt can be decoded: algorithm='sdar' cannot run on a llada model"):
        run(compose(f"run_dir={tmp_path / 'other'}", "generation.algorithm=sdar", "generation.threshold=null"), [])


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    with pytest.raises(RunError, match=r"could not be decoded: the logits of position .* are not finite"):
        train(tmp_path, "optimizer.lr=1e30", "keep_every=1")
    state = torch.load(Record(tmp_path).state, weights_only=True)
    assert state["step"] >= 1
    assert not Record(tmp_path).checkpoint.exists()


def test_a_full_disk_keeps_the_last_state(straight, tmp_path, monkeypatch):
    folder = shutil.copytree(straight.folder, tmp_path / "again")
    record = Record(folder)
    before = record.state.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlm.rl.grpo.record.torch.save", full)
    with pytest.raises(RunError, match=r"cannot write .*last.ckpt .*No space left on device.*; make room"):
        record.keep({"step": 9})
    with pytest.raises(RunError, match=r"cannot write .*checkpoint .*No space left on device"):
        record.save(record.checkpoint, full)
    assert record.state.read_bytes() == before
    assert record.checkpoint.exists()
    assert not list(folder.glob("*draft")) + list(folder.glob(".checkpoint"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["generation.cfg_scale=1.5"], "generation.cfg_scale=1.5: guided answers are not the policy's own"),
        (["generation.align_blocks=true"], "generation.align_blocks=true: replays would ignore it"),
        (["decoder.max_num_seqs=0"], "decoder.max_num_seqs=0: must be at least 1"),
        (["decoder.max_num_batched_tokens=4"], "a block alone has 16 positions"),
        (["validation.prompts=1"], "validation.prompts=1: no standard error from one prompt"),
        (["group_size=1"], "group_size=1: must be at least 2"),
        (["generation.temperature=0"], "generation.temperature=0: all answers of a group would be equal"),
        (["generation.gen_length=0"], "gen_length=0"),
        (["objective.average=answer"], "objective.average='answer' is unknown"),
        (["optimizer.lr=0"], "optimizer.lr=0.0: must be above 0"),
        (["likelihood.p_mask_prompt=2"], "likelihood.p_mask_prompt"),
        (["precision=8"], "precision=8: must be one of 32-true, bf16-mixed"),
        (["rollout_dtype=int8"], "rollout_dtype=int8: must be null or one of"),
        (["reward=function"], "reward.path is not set"),
        (["reward=checker", "reward.checker=number"], "reward.answer_field is not set"),
        (["steps=0", "updates=0"], "updates=0: must be at least 1"),
        (["data.family=poem"], "data.family=poem: must be one of split, pick"),
        (["trainer.devices=2"], "several processes are trainer=ddp"),
    ],
)
def test_wrong_values_are_named_before_anything_is_loaded(overrides, said):
    with pytest.raises(ConfigError) as error:
        check_grpo(compose(*overrides))
    assert said in str(error.value)
