"""What processes agree on is published whole and once; a resumed run must be the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm.cli.command_line import compose_config
from dlm.errors import CheckpointError, ConfigError, DataError, RunError
from dlm.runs.leases import LeasePlan, Leases
from dlm.runs.run_folder import Index, RunFolder

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
        Leases(folder.claims(attempt), "rank0").agree(LeasePlan([], 1))
    for name in ("alpha-rank0", "zeta-rank1", "zeta-rank0", "unknown-rank0"):
        (folder.shards / f"{name}.jsonl").write_text("")
    names = [path.stem for path in folder.shard_files()]
    assert names == ["zeta-rank0", "zeta-rank1", "alpha-rank0", "unknown-rank0"]


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"ids": ["a"', DEEP, b"\xff", b"[]", b"null", b"3", b"{}", b'{"ids": ["a"], "samples": 1}',
             b'{"ids": ["a", "a"], "samples": 1, "digest": ""}', b'{"ids": [1], "samples": 1, "digest": ""}',
             b'{"ids": "ab", "samples": 1, "digest": ""}', b'{"ids": ["a"], "samples": "1", "digest": ""}',
             b'{"ids": ["a"], "samples": 0, "digest": ""}', b'{"ids": ["a"], "samples": 1, "digest": "", "more": 1}'],
)  # fmt: skip
def test_a_damaged_index_says_what_to_delete_and_is_written_anew(text: bytes, tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.index.write_bytes(text)
    for use in (folder.read_index, lambda: folder.agree_on_index(INDEX)):
        with pytest.raises(RunError, match=r"index\.json is damaged \(.*\): delete it and start the run again"):
            use()
    folder.index.unlink()
    folder.agree_on_index(INDEX)
    assert folder.read_index() == INDEX


@pytest.mark.parametrize(
    "text",
    [b"model: {", b"\xff\xfe", b"", b"- 1", b"3", b"a: ${nowhere}", b"!!python/object:os.system {}", DEEP[:5000]],
)
def test_a_damaged_configuration_says_what_to_delete(text: bytes, tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.config.write_bytes(text)
    with pytest.raises(RunError, match=r"config\.yaml is damaged \(.*\): delete it") as raised:
        folder.agree_on_config(compose_config("predict"), "command")
    assert len(str(raised.value)) < 600
    assert not isinstance(folder.data_target(), str)
    folder.config.unlink()
    folder.agree_on_config(compose_config("predict"), "command")
    assert folder.data_target() == "dlm.data.prompts.DemoPrompts"


def test_a_configuration_that_was_cut_anywhere_is_not_taken_for_another_run(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.agree_on_config(compose_config("predict"), "command")
    lines = folder.config.read_text().splitlines(keepends=True)
    for count in range(0, len(lines) - 1, 5):
        folder.config.write_text("".join(lines[:count]))
        with pytest.raises(RunError, match="damaged"):
            folder.agree_on_config(compose_config("predict"), "command")


def test_other_files_that_are_damaged_stop_nobody(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    (folder.path / "command.txt").write_bytes(b"\xff\x00")
    folder.begun_with()
    (folder.path / "command.txt").write_bytes(b"")
    assert "run_dir=" in folder.begun_with()
    for number, text in enumerate((b"", b"{", DEEP, b"[]", b'{"created": "now"}', b'{"created": null}')):
        folder.create(f"attempt{number}")
        (folder.claims(f"attempt{number}") / "plan.json").write_bytes(text)
        (folder.shards / f"attempt{number}-rank0.jsonl").touch()
    (folder.shards / "folder.jsonl").mkdir()
    assert folder.attempts() == []
    assert len(folder.shard_files()) == 6


def test_drafts_and_probes_of_killed_processes_are_cleared_at_the_next_start(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    drafts = [
        folder.path / ".predictions.jsonl.4194303.0a1b2c3d",
        folder.path / ".probe.4194303.0a1b2c3d",
        folder.claims("first") / ".plan.json.4194303.0a1b2c3d",
    ]
    for draft in drafts:
        draft.write_bytes(b"x")
    folder.create("second")
    assert not any(draft.exists() for draft in drafts)


def test_another_model_may_not_go_on_with_a_run(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    first, second = {"config.json": "a", "model.safetensors": "b"}, {"config.json": "a", "tokenizer.json": "c"}
    folder.agree_on_model(second, begun=False)
    folder.agree_on_model(first, begun=False)  # nothing was answered by the second
    folder.agree_on_model(first, begun=True)
    with pytest.raises(CheckpointError) as raised:
        folder.agree_on_model(second, begun=True)
    assert str(raised.value).splitlines()[1:] == ["  model.safetensors: is gone", "  tokenizer.json: was not there"]
    assert "another run_dir" in str(raised.value)
    with pytest.raises(CheckpointError, match=r"config\.json: changed"):
        folder.agree_on_model(first | {"config.json": "d"}, begun=True)
    for text in (b"{", DEEP, b"[]"):
        folder.model.write_bytes(text)
        with pytest.raises(RunError, match=r"model\.json is damaged"):
            folder.agree_on_model(first, begun=True)
    folder.model.unlink()
    folder.agree_on_model(first, begun=True)
