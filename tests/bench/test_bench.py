"""The bench as a user starts it, on its smallest workloads."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlm._paths import conf_dir
from dlm.bench import task
from dlm.bench.config import SpeedConfig, register, to_bench
from dlm.bench.machine import facts as machine
from dlm.bench.machine import rates
from dlm.bench.machine.profile import PARTS
from dlm.bench.report import shortfalls
from dlm.bench.row import Row
from dlm.bench.workloads import cases
from dlm.cli.command_line import compose_config
from dlm.errors import ConfigError
from dlm.models.sizes import SIZES

ENGINES = ("full", "prefix_cache", "dual_cache", "vicinity", "smooth", "sparse", "block_causal")
COMPARED = ("full", "prefix_cache", "dual_cache", "vicinity", "block_causal")
LOADS = ("batching", "load", "load_smoke")
WORKLOADS = sorted(path.stem for path in (conf_dir() / "workload").glob("*.yaml"))


def run(tmp: Path, *overrides: str) -> dict[str, Any]:
    register()
    path = tmp / "bench.json"
    assert task(compose_config("bench", [*overrides, f"json={path}"]), ()) == 0
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "PROBE_SECONDS", 1e-9)  # one call each
        patch.setitem(machine.SIDE, "cpu", 256)
        return run(tmp_path_factory.mktemp("bench"), "workload=smoke", "profile=true")


@pytest.mark.slow
def test_a_row_for_each_combination(smoke: dict[str, Any]) -> None:
    rows = [(row["dtype"], row["engine"], row["sampler"]) for row in smoke["rows"]]
    assert rows == [
        (dtype, engine, sampler)
        for dtype in ("float32", "bfloat16")
        for engine in ENGINES
        for sampler in ("fixed", "threshold")
    ]


def test_figures_are_positive_and_finite(smoke: dict[str, Any]) -> None:
    for row in smoke["rows"]:
        for key in ("seconds_per_forward", "positions_per_second", "tokens_per_second", "floor_share", "nfe"):
            assert math.isfinite(row[key]), (key, row)
            assert row[key] > 0, (key, row)
        assert row["floor_share"] >= row["matmul_peak_share"] * 0.999


def test_schedules_alone_are_compared_where_there_is_a_program(smoke: dict[str, Any]) -> None:
    for row in smoke["rows"]:
        other = row["reference"]
        assert (other is not None) == (row["engine"] in COMPARED and row["sampler"] == "fixed")
        if other is None:
            continue
        assert other["share"] == pytest.approx(other["ratio"] / other["ceiling"])
        assert other["ratio"] == pytest.approx(other["seconds"] / row["seconds"])
        assert other["ceiling"] == pytest.approx(other["reference_ideal"]["total"] / other["ideal"]["total"])
        assert other["nfe"] >= row["nfe"]


def test_both_sides_decode_the_same_in_float32(smoke: dict[str, Any]) -> None:
    compared = [row for row in smoke["rows"] if row["reference"] and row["dtype"] == "float32"]
    assert len(compared) == len(COMPARED)
    assert all(row["reference"]["same_tokens"] == 1.0 for row in compared)


def test_a_sampler_takes_as_many_forwards_as_the_schedule(smoke: dict[str, Any]) -> None:
    counts: dict[str, set[tuple[float, int]]] = {}
    for row in smoke["rows"]:
        counts.setdefault(row["engine"], set()).add((row["nfe"], row["tokens"]))
    assert all(len(found) == 1 for found in counts.values())


def test_the_profile_names_every_part(smoke: dict[str, Any]) -> None:
    for row in smoke["rows"]:
        assert tuple(row["profile"]) == PARTS
        assert all(seconds >= 0 for seconds in row["profile"].values())


def test_the_machine_is_named(smoke: dict[str, Any]) -> None:
    machine = smoke["machine"]
    assert machine["threads"] >= 1
    assert machine["memory_bytes"] > 0
    assert set(machine["matmul_flops"]) == {"float32", "bfloat16"}


def test_experts_and_shifted_models_have_a_floor_and_no_reference(tmp_path: Path) -> None:
    rows = run(tmp_path, "workload=smoke_moe")["rows"]
    assert {row["size"] for row in rows} == {"tiny_moe", "tiny_llada2", "tiny_dream", "tiny_nemotron"}
    assert all(row["reference"] is None and row["floor_share"] > 0 for row in rows)


def test_rows_that_miss_a_goal_are_named() -> None:
    work = SpeedConfig(size="tiny", engines=["full"], dtypes=["float32"], batches=[1], steps_per_block={"full": 2})
    (case,) = cases(work, {"tiny": 1024})
    row = Row(case, 1, 2.0, 2, 2.0, 4, 4, None, costs=((20.0, 8.0), (30.0, 8.0)), peak=100.0, bandwidth=10.0)
    assert row.peak_share == 0.25
    assert row.floor_share == pytest.approx((0.8 + 0.8) / 2.0)
    (line,) = shortfalls([row], 0.6)
    assert "25% of the matmul peak, under 60%" in line
    assert shortfalls([row], 0.2) == shortfalls([row], None) == []


def test_quality_answers_by_name(tmp_path: Path) -> None:
    names = "workload.algorithms=[dual_cache,entropy_bound,sparse]"
    values = run(tmp_path, "workload=quality", "workload.per_family=2", names)
    rows = values["rows"]
    assert rows[0]["variant"] == "dual_cache, threshold 0.9"
    assert {row["algorithm"] for row in rows} == {"dual_cache", "entropy_bound", "sparse"}
    for row in rows:
        assert 0 <= row["exact_match"] <= 1
        assert row["exact_match_gain"] == pytest.approx(row["exact_match"] - rows[0]["exact_match"])
        assert row["tokens_per_forward"] <= row["decided_per_forward"]
    one_by_one = next(row for row in rows if row["variant"] == "dual_cache, 1 token a step")
    assert one_by_one["decided_per_forward"] == 1.0


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_is_sound(name: str) -> None:
    register()
    server = ["target=server", "url=http://127.0.0.1:8000"] if name in LOADS else []
    work = to_bench(compose_config("bench", [f"workload={name}", *server])).workload
    if isinstance(work, SpeedConfig):
        assert cases(work, {size: config.vocab_size for size, config in SIZES.items()})


def faults(*overrides: str) -> str:
    register()
    with pytest.raises(ConfigError) as caught:
        to_bench(compose_config("bench", list(overrides)))
    return str(caught.value)


def test_all_faults_of_a_workload_are_named_at_once() -> None:
    overrides = ["workload.size=9t", "workload.batches=[0]", "device=tpu", "clock=sun", "json=/no/such/folder/b.json"]
    message = faults("workload=smoke", "workload.engines=[ful]", "workload.samplers=[best]", *overrides)
    for fault in [*overrides, "workload.engines=['ful']", "workload.samplers=['best']"]:
        assert fault in message


def test_what_does_not_go_together_is_refused_at_once() -> None:
    message = faults(
        "workload=smoke",
        "workload.sizes.block_causal=tiny",
        "workload.samplers=[klass]",
        "workload.steps_per_block.full=99",
        "workload.prompt_lengths=[2048]",
        "workload.blocks=9",
    )
    assert "block_causal does not run size tiny, whose attention is bidirectional" in message
    assert "klass is not defined for the inputs of engine smooth" in message
    assert "workload.steps_per_block.full=99 must be 1..8" in message
    assert "make a canvas of 2256 positions, but size tiny has 1024" in message
    assert "at least blocks=9 of them" in message


def test_quality_refuses_what_it_does_not_do() -> None:
    message = faults("workload=quality", "workload.algorithms=[dream]", "workload.per_family=0", "profile=true")
    for part in ("workload.algorithms=['dream'] must be a list of values from basic", "per_family=0", "profile="):
        assert part in message
    assert "engines" in faults("workload=quality", "workload.engines=[full]")


def test_the_shapes_are_what_their_names_say() -> None:
    for name, millions in (("57m", 59), ("57m_sdar", 59), ("300m", 300)):
        config = SIZES[name]
        layer = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
        assert round(config.num_layers * layer / 1e6) == millions


def test_help_names_the_workloads_without_torch() -> None:
    code = "import sys; sys.argv[1:] = ['--help']\ntry:\n    import dlm.bench; dlm.bench.main()\nfinally:\n"
    code += "    assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    for word in ("workload", *WORKLOADS):
        assert word in run.stdout


@pytest.mark.parametrize("name", ["small_body", "load"])
def test_a_workload_says_what_each_key_does(name: str) -> None:
    text = (conf_dir() / "workload" / f"{name}.yaml").read_text(encoding="utf-8")
    keys = OmegaConf.load(conf_dir() / "workload" / f"{name}.yaml").keys() - {"defaults"}
    assert all("#" in line for line in text.splitlines() if line.split(":")[0] in keys and "steps_per" not in line)
