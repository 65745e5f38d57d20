"""Predictions under SLURM: one torchrun a machine, all of them one group."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from dlm.cli.command_line import compose_config
from tests.launch.cluster import SECRETS, Cluster, after

SCRIPT = "predict.sbatch"
ARGUMENTS = ("model=random", "data=jsonl", "data.path=my prompts.jsonl")


def run_dir(cluster: Cluster) -> Path:
    return cluster.work / "outputs" / "predict" / "slurm-123"


def test_each_machine_runs_torchrun_with_a_process_a_gpu(cluster: Cluster) -> None:
    done = cluster.run(SCRIPT, *ARGUMENTS, **cluster.job(nodes=2, SLURM_GPUS_ON_NODE="8"))
    assert done.returncode == 0, done.stderr
    [step] = cluster.calls("srun")
    assert {"--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= {*step}
    started = [parse_args(after(call, "-m", "torch.distributed.run")) for call in cluster.calls("python")]
    assert sorted(one.node_rank for one in started) == [0, 1]
    for one in started:
        assert (one.nnodes, one.nproc_per_node, one.module) == ("2", "8", True)
        assert (one.master_addr, one.master_port, one.rdzv_id) == ("n1", 20123, "123-0")
        assert (one.training_script, one.training_script_args) == ("dlm.predict", ["trainer=ddp", *ARGUMENTS])


def test_dlm_predict_understands_the_arguments(cluster: Cluster) -> None:
    cluster.run(SCRIPT, *ARGUMENTS, **cluster.job())
    [command] = cluster.calls("python")
    assert compose_config("predict", after(command, "-m", "dlm.predict")).trainer.strategy == "ddp"


@pytest.mark.parametrize(("given", "folder"), [("", "outputs/predict/slurm-123"), ("mine", "mine")])
def test_all_processes_share_one_folder(given: str, folder: str, cluster: Cluster) -> None:
    extra = {"DLM_RUN_DIR": given} if given else {}
    done = cluster.run(SCRIPT, *ARGUMENTS, **cluster.job(nodes=2), **extra)
    path = cluster.work / folder
    assert path.is_dir()
    assert done.stdout == f"run folder: {path}\n"
    found = cluster.environment("torch.distributed.run")
    assert found["DLM_RUN_DIR"] == str(path)
    assert found["SRUN_CPUS_PER_TASK"] == "8"
    assert found["HF_TOKEN"] == SECRETS["HF_TOKEN"]


def test_a_job_that_is_queued_again_is_another_group(cluster: Cluster) -> None:
    cluster.run(SCRIPT, *ARGUMENTS, **cluster.job(SLURM_RESTART_COUNT="2"))
    [command] = cluster.calls("python")
    assert after(command, "--rdzv-id")[0] == "123-2"


def test_the_exit_code_is_that_of_the_run(cluster: Cluster) -> None:
    assert cluster.run(SCRIPT, *ARGUMENTS, **cluster.job(FAKE_CODE="4")).returncode == 4


def test_the_warning_before_the_time_is_up_reaches_python(cluster: Cluster) -> None:
    with cluster.started(SCRIPT, *ARGUMENTS, **cluster.job(nodes=2, FAKE_RUNS="1")) as process:
        cluster.wait_for(2, process)
        cluster.warn()
        assert cluster.finish(process).returncode == 0
    assert [event for event, _ in cluster.ends()].count("SIGTERM") == 2


def test_processes_run_in_the_container(cluster: Cluster) -> None:
    image = cluster.folder / "dlm.sqsh"
    image.touch()
    job = cluster.job(DLM_CONTAINER_IMAGE=str(image), DLM_CONTAINER_MOUNTS="/data:/data")
    assert cluster.run(SCRIPT, *ARGUMENTS, **job).returncode == 0
    [step] = cluster.calls("srun")
    folders = [str(cluster.work), str(run_dir(cluster)), "/data"]
    assert f"--container-mounts={','.join(f'{one}:{one}' for one in folders)}" in step
    assert {f"--container-image={image}", f"--container-workdir={cluster.work}"} <= {*step}


def test_a_container_that_cannot_be_is_refused(cluster: Cluster) -> None:
    job = cluster.job()
    cluster.refuses("gone.sqsh: no such file", SCRIPT, *ARGUMENTS, **job, DLM_CONTAINER_IMAGE="/gone.sqsh")
    cluster.refuses("DLM_CONTAINER_IMAGE is not", SCRIPT, *ARGUMENTS, **job, DLM_CONTAINER_MOUNTS="/a:/a")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer=gpu", "trainer=ddp, set here"),
        ("run_dir=x", "DLM_RUN_DIR=x"),
        ("--nodes=2", "before the script's name"),
        ("demo", "no key=value"),
    ],
)
def test_what_cannot_be_meant_is_refused(argument: str, message: str, cluster: Cluster) -> None:
    cluster.refuses(message, SCRIPT, argument, **cluster.job())


def test_where_it_does_not_belong_it_is_refused(cluster: Cluster) -> None:
    cluster.refuses("sbatch launch/predict.sbatch", SCRIPT, *ARGUMENTS)
    cluster.refuses("launch/predict_array.sbatch", SCRIPT, *ARGUMENTS, **cluster.job(SLURM_ARRAY_JOB_ID="1"))
