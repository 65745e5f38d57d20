"""Predictions without a queue: torchrun here, or on each of several machines."""

from __future__ import annotations

import signal

import pytest
from torch.distributed.run import parse_args

from dlm.cli.command_line import compose_config
from tests.launch.cluster import Cluster, after

SCRIPT = "torchrun.sh"
ARGUMENTS = ("model=random", "data=jsonl", "data.path=my prompts.jsonl")
SECOND = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "n1", "DLM_RUN_DIR": "/common/run", "JOB": "7"}


@pytest.mark.parametrize(("found", "processes"), [(0, "1"), (3, "3")])
def test_here_a_process_a_gpu(found: int, processes: str, cluster: Cluster) -> None:
    counted = f"class cuda:\n    device_count = staticmethod(lambda: {found})\n"
    (cluster.folder / "modules" / "torch.py").write_text(counted)
    done = cluster.run(SCRIPT, *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    started = parse_args(after(cluster.calls("python")[-1], "-m", "torch.distributed.run"))
    assert (started.standalone, started.nproc_per_node, started.module) == (True, processes, True)
    assert (started.training_script, started.training_script_args) == ("dlm.predict", ["trainer=ddp", *ARGUMENTS])
    assert compose_config("predict", started.training_script_args).trainer.strategy == "ddp"


def test_one_of_several_machines(cluster: Cluster) -> None:
    assert cluster.run(SCRIPT, *ARGUMENTS, GPUS="4", MASTER_PORT="29999", **SECOND).returncode == 0
    [command] = cluster.calls("python")
    started = parse_args(after(command, "-m", "torch.distributed.run"))
    assert (started.nnodes, started.node_rank, started.nproc_per_node, started.rdzv_id) == ("2", 1, "4", "7")
    assert (started.master_addr, started.master_port) == ("n1", 29999)
    found = cluster.environment("torch.distributed.run")
    assert (found["DLM_RUN_DIR"], found["DLM_ATTEMPT"]) == ("/common/run", "torchrun-7")


def test_python_takes_the_place_of_the_script(cluster: Cluster) -> None:
    with cluster.started(SCRIPT, *ARGUMENTS, GPUS="1", FAKE_RUNS="1", FAKE_CODE="143") as process:
        cluster.wait_for(1, process)
        process.send_signal(signal.SIGTERM)
        assert cluster.finish(process).returncode == 143
    assert [event for event, _ in cluster.ends()] == ["SIGTERM", "ended"]


@pytest.mark.parametrize("name", ["DLM_RUN_DIR", "MASTER_ADDR", "NODE_RANK", "JOB"])
def test_several_machines_must_agree_on(name: str, cluster: Cluster) -> None:
    cluster.refuses(f"set {name} to", SCRIPT, *ARGUMENTS, **{**SECOND, name: ""})


@pytest.mark.parametrize(
    ("argument", "extra", "message"),
    [
        ("trainer=gpu", {}, "set here; leave it out"),
        ("--nproc=2", {}, "no key=value"),
        ("demo", {}, "no key=value"),
        ("model=random", {"NNODES": "two"}, "NNODES=two"),
        ("model=random", {**SECOND, "NODE_RANK": "2"}, "NODE_RANK=2 is none of the 2 machines: 0 to 1"),
        ("model=random", {"GPUS": "all"}, "GPUS=all is no number"),
    ],
)
def test_what_cannot_be_meant_is_refused(argument: str, extra: dict[str, str], message: str, cluster: Cluster) -> None:
    cluster.refuses(message, SCRIPT, argument, **extra)


def test_without_python_it_says_so(cluster: Cluster) -> None:
    cluster.remove("python")
    cluster.refuses("python is not on the PATH", SCRIPT, *ARGUMENTS)
