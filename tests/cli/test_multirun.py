"""Folders of the jobs of a multirun, by what was typed; `pipeline/test_sweep.py` runs some."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.cli.multirun import LONGEST, name_of


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["algorithm=klass", "sampler.threshold=0.5"], "algorithm-klass--sampler.threshold-0.5"),
        (["logger=wandb", "logger.group=x", "data.limit=3", "run_dir=x", "progress.every_seconds=1"], "data.limit-3"),
        (["logger_like=1"], "logger_like-1"),
        ([], "job"),
    ],
)
def test_a_job_is_named_after_what_was_typed(words: list[str], name: str) -> None:
    assert name_of(words) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["x=1"], ["x=-1"]),
        (["data.path=/a/b"], ["data.path=/a_b"]),
        (["x=a b"], ["x=a-b"]),
        (["x=1", "y=2"], ["x=1--y", "y=2"]),
        (["x=" + "1" * 300], ["x=" + "1" * 301]),
        (["+x=1"], ["x=1"]),
        (["x="], ["x=-"]),
        (["hydra/launcher=x"], ["hydra.launcher=x"]),
    ],
)
def test_different_jobs_have_different_names(one: list[str], other: list[str]) -> None:
    assert name_of(one) != name_of(other)
    assert name_of(one) == name_of(list(one))


@given(st.lists(st.text(min_size=1, max_size=40), max_size=5))
def test_a_name_needs_no_quotes_and_is_short(words: list[str]) -> None:
    name = name_of(words)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", name)
    assert len(name) <= LONGEST + len("-12345678")
    assert name not in (".", "..")
