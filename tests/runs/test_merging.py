"""`predictions.jsonl` holds each prompt once, in input order, or is not written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.errors import DataError, IncompleteRunError
from dlm.runs.merging import merge
from dlm.runs.run_folder import Index, RunFolder
from dlm.runs.shards import to_line
from tests.pipeline.rows import refused, row
from tests.running import rows_of


def folder_with(path: Path, ids: list[str], samples: int, shards: list[list[dict[str, object]]]) -> RunFolder:
    folder = RunFolder(path)
    folder.create("first")
    folder.agree_on_index(Index(ids, samples, ""))
    for number, rows in enumerate(shards):
        (folder.shards / f"first-rank{number}.jsonl").write_bytes(b"".join(map(to_line, rows)))
    return folder


@given(data=st.data(), samples=st.integers(1, 3), prompts=st.integers(1, 12), ranks=st.integers(1, 4))
def test_whatever_the_order_in_the_shards_the_input_order_comes_out(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, samples: int, prompts: int, ranks: int
) -> None:
    ids = [f"id {number}" for number in range(prompts)]
    rows: list[dict[str, object]] = [row(id, sample=sample) for id in ids for sample in range(samples)]
    repeated = data.draw(st.lists(st.sampled_from(rows), max_size=4))
    shuffled = data.draw(st.permutations(rows + repeated))
    shards = [shuffled[rank::ranks] for rank in range(ranks)]
    folder = folder_with(tmp_path_factory.mktemp("run"), ids, samples, shards)
    merged = merge(folder, "resume")
    assert rows_of(merged.path) == rows
    assert (merged.prompts, merged.rows, merged.refused) == (prompts, prompts * samples, 0)


def test_a_missing_answer_is_an_error_with_the_command(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a", "b", "c"], 1, [[row("b")]])
    with pytest.raises(IncompleteRunError) as raised:
        merge(folder, "python -m dlm.predict run_dir=x")
    assert "1 of 3 prompts are answered and kept, 2 are missing (a, c)" in str(raised.value)
    assert "python -m dlm.predict run_dir=x" in str(raised.value)
    assert not folder.predictions.exists()


def test_refused_prompts_are_rows_and_counted(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a", "b"], 2, [[refused("b")], [row("a"), row("a", sample=1)]])
    merged = merge(folder, "resume")
    assert (merged.rows, merged.refused) == (3, 1)
    assert [one["id"] for one in rows_of(merged.path)] == ["a", "a", "b"]
    merged.require_answers()


def test_a_run_without_any_answer_is_told_with_the_first_reason(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a", "b"], 1, [[refused("b"), refused("a", "9 positions, but the model has 8")]])
    merged = merge(folder, "resume")
    assert [one["id"] for one in rows_of(merged.path)] == ["a", "b"]
    with pytest.raises(DataError, match=r"none of the 2 prompts has an answer\. The first, 'a': 9 positions"):
        merged.require_answers()


def test_missing_ids_are_named_cut_and_on_one_line(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["x\ny", "z" * 10_000], 1, [])
    with pytest.raises(IncompleteRunError) as raised:
        merge(folder, "resume")
    named = str(raised.value).splitlines()[0]
    assert r"'x\ny'" in named
    assert len(named) < 300


def test_a_draft_of_a_killed_merge_is_cleared_by_the_next(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a"], 1, [[row("a")]])
    (tmp_path / ".predictions.jsonl.4194303.0a1b2c3d").write_bytes(b"half of it")
    merge(folder, "resume")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims", "index.json", "predictions.jsonl", "shards"]
