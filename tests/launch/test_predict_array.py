"""Predictions on machines that may be taken away: the array, its tasks, and the merge behind it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from dlm.cli.command_line import compose_config
from tests.launch.cluster import LAUNCH, SECRETS, Cluster, after

SCRIPT = "predict_array.sbatch"
ARGUMENTS = ("model=random", "data=jsonl", "data.path=my prompts.jsonl")


def submit(cluster: Cluster, *arguments: str, **extra: str) -> tuple[list[str], list[str]]:
    """The two calls of sbatch: the array and the merge."""
    cluster.answer("sbatch", [0, "40;cluster\n"], [0, "41;cluster\n"])
    done = cluster.run(SCRIPT, *arguments, *ARGUMENTS, **extra)
    assert done.returncode == 0, done.stderr
    assert "array: job 40," in done.stdout
    assert "merge: job 41," in done.stdout
    array, merge = cluster.calls("sbatch")
    return array, merge


def task(cluster: Cluster, *, nodes: int = 1, **extra: str) -> dict[str, str]:
    """What a task of the array finds in its environment."""
    return cluster.job(nodes=nodes, DLM_RUN_DIR="/run", SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="3", **extra)


def test_an_array_of_more_tasks_than_run_at_once_and_a_merge_behind_it(cluster: Cluster) -> None:
    array, merge = submit(cluster, "--tasks", "256", "--at-once=32", "--time=02:00:00", "--account=mine")
    script = str(LAUNCH / SCRIPT)
    options, given = array[: array.index(script)], after(array, script)
    assert {"--array=0-255%32", "--requeue", "--open-mode=append", "--gpus-per-node=1"} <= {*options}
    assert options.index("--time=02:00:00") > options.index("--time=01:00:00"), "the last one counts"
    assert given == ["trainer=gpu", *ARGUMENTS]
    assert {"--dependency=afterany:40", "--account=mine"} <= {*merge}
    assert "--time=02:00:00" not in merge
    assert after(merge, script) == ["merge"]


def test_tasks_are_warned_before_their_time_is_up(cluster: Cluster) -> None:
    array, _ = submit(cluster)
    assert "--signal=TERM@120" in array, "not B: the signal is for the processes, not for the script"
    assert "--array=0-63%16" in array


def test_all_share_a_folder_that_the_submission_names(cluster: Cluster) -> None:
    submit(cluster)
    folder = cluster.environment("merge")["DLM_RUN_DIR"]
    assert cluster.environment("trainer=gpu")["DLM_RUN_DIR"] == folder
    assert Path(folder).is_dir()
    assert Path(folder).parent == cluster.work / "outputs" / "predict"


def test_the_same_folder_resumes(cluster: Cluster) -> None:
    cluster.answer("sbatch", [0, "40\n"])
    done = cluster.run(SCRIPT, *ARGUMENTS, DLM_RUN_DIR="my run")
    assert cluster.environment("merge")["DLM_RUN_DIR"] == f"{cluster.work}/my run"
    again = done.stdout.splitlines()[-1].partition("the same command with DLM_RUN_DIR=")[2]
    assert shlex.split(again) == [f"{cluster.work}/my run"]


def test_a_task_is_one_process_that_knows_the_folder(cluster: Cluster) -> None:
    array, _ = submit(cluster)
    given = after(array, str(LAUNCH / SCRIPT))
    done = cluster.run(SCRIPT, *given, **task(cluster))
    assert done.returncode == 0, done.stderr
    [step] = cluster.calls("srun")
    assert step[0] == "--ntasks=1"
    assert cluster.calls("python") == [["-m", "dlm.predict", *given]]
    found = cluster.environment("-m", "dlm.predict")
    assert (found["DLM_RUN_DIR"], found["SRUN_CPUS_PER_TASK"]) == ("/run", "8")
    assert found["HF_TOKEN"] == SECRETS["HF_TOKEN"]
    assert compose_config("predict", given).trainer.devices == 1


def test_a_task_is_told_by_signal_and_answers_by_exit_code(cluster: Cluster) -> None:
    job = task(cluster, FAKE_RUNS="1", FAKE_CODE="143")
    with cluster.started(SCRIPT, *ARGUMENTS, **job) as process:
        cluster.wait_for(1, process)
        cluster.warn()
        assert cluster.finish(process).returncode == 143
    assert cluster.ends() == [(event, ["-m", "dlm.predict", *ARGUMENTS]) for event in ("SIGTERM", "ended")]


def test_the_merge_puts_the_answers_together(cluster: Cluster) -> None:
    job = cluster.job(DLM_RUN_DIR="/run")
    assert cluster.run(SCRIPT, "merge", **job, FAKE_CODE="1").returncode == 1, "answers are missing"
    assert cluster.calls("python") == [["-m", "dlm.merge", "run_dir=/run"]]


def test_tasks_and_merge_run_in_the_container(cluster: Cluster) -> None:
    image = cluster.folder / "dlm.sqsh"
    image.touch()
    wishes = {"DLM_CONTAINER_IMAGE": str(image), "DLM_CONTAINER_MOUNTS": "/data:/data"}
    submit(cluster, **wishes)
    assert cluster.environment("merge").items() >= wishes.items()
    assert cluster.run(SCRIPT, *ARGUMENTS, **task(cluster), **wishes).returncode == 0
    assert cluster.run(SCRIPT, "merge", **cluster.job(DLM_RUN_DIR="/run"), **wishes).returncode == 0
    mounts = f"--container-mounts={cluster.work}:{cluster.work},/run:/run,/data:/data"
    for step in cluster.calls("srun"):
        assert {f"--container-image={image}", mounts, f"--container-workdir={cluster.work}"} <= {*step}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "0"), "--tasks needs a whole number above 0, not '0'"),
        (("--tasks",), "--tasks needs a whole number above 0, not ''"),
        (("--at-once=many",), "not 'many'"),
        (("--array=0-9",), "say --tasks and --at-once"),
        (("-p", "long"), "--name=value"),
        (("run_dir=x",), "DLM_RUN_DIR=x"),
        (("trainer=ddp",), "raise --tasks and --at-once"),
        (("demo",), "no key=value"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: tuple[str, ...], message: str, cluster: Cluster) -> None:
    cluster.refuses(message, SCRIPT, *arguments)


def test_a_container_that_cannot_be_is_refused_before_it_is_queued(cluster: Cluster) -> None:
    cluster.refuses("gone.sqsh: no such file", SCRIPT, *ARGUMENTS, DLM_CONTAINER_IMAGE="/gone.sqsh")
    cluster.refuses("DLM_CONTAINER_IMAGE is not", SCRIPT, *ARGUMENTS, DLM_CONTAINER_MOUNTS="/a:/a")


def test_a_task_with_more_than_a_gpu_is_refused(cluster: Cluster) -> None:
    for job in (task(cluster, SLURM_GPUS_ON_NODE="2"), task(cluster, nodes=2)):
        cluster.refuses("a task is one process on one GPU", SCRIPT, *ARGUMENTS, **job)


def test_sbatch_does_not_start_it_by_itself(cluster: Cluster) -> None:
    copy = cluster.folder / "slurm_script"
    shutil.copy(LAUNCH / SCRIPT, copy)
    cluster.refuses("start this with bash, not with sbatch", str(copy), *ARGUMENTS, **cluster.job())
    job = cluster.job(SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="0")
    cluster.refuses("DLM_RUN_DIR is not set", str(copy), *ARGUMENTS, **job)


def test_what_slurm_refuses_is_said(cluster: Cluster) -> None:
    cluster.answer("sbatch", [1, ""])
    assert cluster.run(SCRIPT, *ARGUMENTS).returncode == 1
    assert len(cluster.calls("sbatch")) == 1, "no merge without an array"
    (cluster.folder / "calls.jsonl").unlink()
    cluster.answer("sbatch", [0, "40\n"], [1, ""])
    done = cluster.run(SCRIPT, *ARGUMENTS, DLM_RUN_DIR="/tmp")
    assert done.returncode == 1
    assert "array: job 40" in done.stdout
    assert "python -m dlm.merge run_dir=/tmp" in done.stderr
    cluster.remove("sbatch")
    cluster.refuses("sbatch is not on the PATH", SCRIPT, *ARGUMENTS)
