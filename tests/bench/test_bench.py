"""The bench as a user starts it, on its smallest workload."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlm.bench import task
from dlm.bench.config import register, to_bench
from dlm.bench.profile import PARTS
from dlm.command_line import compose_config
from dlm.errors import ConfigError

ROWS = [(e, b, d) for d in ("float32", "bfloat16") for e in ("full", "dual_cache") for b in (1, 4)]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    register()
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    assert task(compose_config("bench", ["workload=smoke", "profile=true", f"json={path}"]), ()) == 0
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def test_a_row_for_each_combination(smoke: dict[str, Any]) -> None:
    assert [(row["engine"], row["batch"], row["dtype"]) for row in smoke["rows"]] == ROWS


def test_figures_are_positive_and_finite(smoke: dict[str, Any]) -> None:
    for row in smoke["rows"]:
        for key in ("seconds", "reference_seconds", "ratio", "ceiling", "share", "floor_seconds"):
            assert math.isfinite(row[key]), (key, row)
            assert row[key] > 0, (key, row)
        assert row["share"] == pytest.approx(row["ratio"] / row["ceiling"])
        assert row["ceiling"] == pytest.approx(row["reference_ideal"]["total"] / row["ideal"]["total"])


def test_both_sides_made_the_same_forwards(smoke: dict[str, Any]) -> None:
    for row in smoke["rows"]:
        assert row["reference_forwards"] == row["nfe"] * row["batch"]
        assert row["forwards"] == row["nfe"]


def test_both_sides_decode_the_same_in_float32(smoke: dict[str, Any]) -> None:
    assert all(row["same_tokens"] == 1.0 for row in smoke["rows"] if row["dtype"] == "float32")


def test_the_profile_names_every_part(smoke: dict[str, Any]) -> None:
    for row in smoke["rows"]:
        assert tuple(row["profile"]) == PARTS
        assert all(seconds >= 0 for seconds in row["profile"].values())


def test_the_machine_is_named(smoke: dict[str, Any]) -> None:
    machine = smoke["machine"]
    assert machine["threads"] >= 1
    assert machine["memory_bytes"] > 0
    assert set(machine["matmul_flops"]) == {"float32", "bfloat16"}


def test_all_faults_of_a_workload_are_named_at_once() -> None:
    register()
    overrides = ["workload=smoke", "workload.size=9t", "workload.batches=[0]", "workload.engines=[ful]"]
    overrides += ["device=tpu", "clock=sun", "json=/no/such/folder/b.json"]
    with pytest.raises(ConfigError) as caught:
        to_bench(compose_config("bench", overrides))
    for fault in overrides[1:3] + overrides[4:] + ["workload.engines=['ful']"]:
        assert fault in str(caught.value)


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    register()
    with pytest.raises(ConfigError, match=r"workload\.steps_per_block\.full=99"):
        to_bench(compose_config("bench", ["workload=smoke", "workload.steps_per_block.full=99"]))


def test_help_names_the_workloads_without_torch() -> None:
    code = "import sys; sys.argv[1:] = ['--help']\ntry:\n    import dlm.bench; dlm.bench.main()\nfinally:\n"
    code += "    assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    for word in ("workload", "smoke", "small_body", "llada_8b"):
        assert word in run.stdout
