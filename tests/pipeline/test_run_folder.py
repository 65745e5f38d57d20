"""What processes agree on is published whole and once; a resumed run must be the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm.command_line import compose_config
from dlm.errors import ConfigError, DataError, RunError
from dlm.pipeline.claims import Claims, Plan
from dlm.pipeline.run_folder import Index, RunFolder

INDEX = Index(["a", "b"], 1, "digest")


def begun(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.create("first")
    return folder


def test_a_resumed_run_may_differ_in_how_but_not_in_what(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.agree_on_config(compose_config("predict"), "command")
    how = ["trainer=ddp", "trainer.devices=2", "logger=csv", "decoder.max_num_seqs=3", "run_dir=x"]
    folder.agree_on_config(compose_config("predict", [*how, "progress.every_seconds=1"]), "another")
    assert folder.begun_with() == "command"
    what = ["generation.seed=7", "sampler=factor", "model=random"]
    with pytest.raises(ConfigError) as raised:
        folder.agree_on_config(compose_config("predict", what), "command")
    for key in ("generation.seed: begun with 0, now 7", "sampler.factor: begun with None, now 1.0", "model.size"):
        assert key in str(raised.value)


def test_a_run_keeps_its_prompts(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.agree_on_index(INDEX)
    folder.agree_on_index(INDEX)
    with pytest.raises(DataError, match="the prompts are not those"):
        folder.agree_on_index(Index(["a"], 1, "other"))


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        RunFolder(tmp_path / "nowhere").read_index()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another place with run_dir=<folder>"):
        RunFolder(tmp_path / "file" / "run").create("first")


def test_shards_count_in_the_order_of_attempts(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    for attempt in ("zeta", "alpha"):
        folder.create(attempt)
        Claims(folder.claims(attempt), "rank0").agree(Plan([], 1))
    for name in ("alpha-rank0", "zeta-rank1", "zeta-rank0", "unknown-rank0"):
        (folder.shards / f"{name}.jsonl").write_text("")
    names = [path.stem for path in folder.shard_files()]
    assert names == ["zeta-rank0", "zeta-rank1", "alpha-rank0", "unknown-rank0"]
