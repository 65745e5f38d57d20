"""The self-check passes where the promise holds, and fails on faults that are planted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dlm.decoding.scoring.rows import Rows
from dlm.models.arithmetic import RowCounts, kinds, row_counts
from dlm.models.arrangement import Arrangement
from dlm.models.families import FAMILIES, SpecialTokens
from dlm.models.io.loading import Checkpoint, empty_backbone
from dlm.models.sizes import SIZES
from dlm.selfcheck.checks import CheckResult, Cost, prove
from tests.decoding.worlds import BY_NAME, stir
from tests.models.stand_in_products import by_count, by_place
from tests.threads import threads

pytestmark = pytest.mark.bits

SECONDS = 0.01
"""The least of every check."""


def found(checkpoint: Checkpoint, seed: int = 0) -> dict[str, CheckResult]:
    results = {one.name: one for one in prove(checkpoint, SECONDS, seed) if isinstance(one, CheckResult)}
    assert list(results) == ["products", "attention", "scorer", "decoder"]
    assert all(one.compared for one in results.values())
    return results


def large_vocabulary() -> Checkpoint:
    backbone = empty_backbone(replace(SIZES["tiny"], vocab_size=50_257), torch.float32, "cpu")
    backbone.initialize(2)
    family = next(family for family in FAMILIES if family.name == "llada")
    made = Checkpoint(backbone.eval().requires_grad_(False), family, SpecialTokens(50_256, 50_255), None)
    stir(made)
    return made


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llada", "llada2", "nemotron"])
def test_it_holds_here(name: str, dtype: str, count: int) -> None:
    with threads(count):
        assert all(result.holds for result in found(BY_NAME[name].checkpoint(dtype)).values())


def test_a_lone_row_that_is_split_among_threads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with threads(2):
        checkpoint = large_vocabulary()
        assert all(result.holds for result in found(checkpoint).values())
        monkeypatch.setattr(Rows, "filled", lambda self, tile: self)
        results = found(checkpoint)
    assert not results["scorer"].holds
    assert results["products"].holds


@pytest.mark.parametrize("kernel", [by_count(16), by_place(8)], ids=["by_count", "by_place"])
def test_tiles_of_four_rows_are_found_out_where_they_do_not_hold(
    kernel: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor that takes another kernel for few rows, or for some places."""
    heads = {"num_heads": 3, "num_kv_heads": 3, "head_dim": 4}
    small = replace(SIZES["tiny"], vocab_size=66, hidden_size=12, intermediate_size=18, num_layers=1, **heads)
    backbone = empty_backbone(small, torch.float32, "cpu")
    backbone.initialize(2)
    checkpoint = replace(large_vocabulary(), backbone=backbone.requires_grad_(False), special=SpecialTokens(65, 64))
    monkeypatch.setattr(F, "linear", kernel)
    row_counts.cache_clear()
    try:
        assert all(result.holds for result in found(checkpoint).values())
        fours = RowCounts(tuple(range(4, 513, 4)))
        monkeypatch.setattr(kinds, "row_counts", lambda product, threads: fours)
        results = found(checkpoint)
    finally:
        row_counts.cache_clear()
    assert not results["products"].holds
    assert not results["decoder"].holds


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="there is no MKL, and so no strict mode")
def test_products_and_windows_that_are_trusted_fail_after_an_early_product() -> None:
    """MKL's strict mode comes into force before the first product or not at all; nothing says which."""
    command = [sys.executable, "-m", "tests.selfcheck.trusting"]
    rest = ["threads=2", "dtypes=[float32,float64]", "seconds=4", "model=random", "model.size=small"]
    late = subprocess.run([*command, *rest], capture_output=True, text=True, check=False)
    assert late.returncode == 1, late.stdout + late.stderr
    assert "FAILED: float" in late.stdout


def test_the_program_says_what_it_covered(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dlm.selfcheck", "seconds=2", "threads=2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("2 threads", "float32", "bfloat16", "arrangement", "products", "attention", "scorer", "decoder"):
        assert words in done.stdout
    assert done.stdout.rstrip().endswith("holds: every comparison has equal bits")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("dtypes=[int8]", "dtypes=['int8'] must be a list of values from float32"),
        ("threads=0", "threads=0 must be at least 1"),
        ("seconds=0", "seconds=0.0 must be above 0"),
        ("model=checkpoint", "model.path is not set"),
    ],
)
def test_wrong_values_are_named(given: str, fault: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dlm.selfcheck", given], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert fault in done.stderr


def test_the_cost_is_told() -> None:
    *_, cost = prove(BY_NAME["llada"].checkpoint(), SECONDS, 0)
    assert isinstance(cost, Cost)
    assert set(cost.ratios) == {1, 16}
    assert all(0 < ratio < float("inf") for ratio in cost.ratios.values())


def test_the_arrangement_comes_first() -> None:
    first = next(prove(BY_NAME["llada"].checkpoint(), SECONDS, 0))
    assert isinstance(first, Arrangement)
    assert "float32, 1 thread, products of" in str(first)
