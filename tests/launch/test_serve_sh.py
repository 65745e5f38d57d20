"""The flags of the older launchers, and what they become here and under SLURM."""

from __future__ import annotations

import shlex
import signal

import pytest

from dlm.cli.command_line import compose_config
from dlm.decoding.algorithms import ALGORITHMS
from dlm.serving.config import register, to_fleet, to_settings
from tests.launch.cluster import LAUNCH, SECRETS, Cluster, after

SCRIPT = "serve.sh"
LLADA = ("--model-path", "GSAI-ML/LLaDA-8B-Instruct")


def local(cluster: Cluster, *flags: str) -> list[str]:
    """What `--local` with these flags gives to dlm.serve."""
    done = cluster.run(SCRIPT, "--local", "--dry-run", *flags)
    assert done.returncode == 0, done.stderr
    assert not cluster.log(), "--dry-run starts nothing"
    return after(shlex.split(done.stdout), "python", "-m", "dlm.serve")


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        (LLADA, ["devices=1", "model=llada_8b_instruct", "algorithm=auto"]),
        (
            ("--model-path", "GSAI-ML/LLaDA-8B-Instruct", "--revision", "0123abc"),
            ["devices=1", "model=checkpoint", "model.path=GSAI-ML/LLaDA-8B-Instruct", "model.revision=0123abc"],
        ),
        (("--model-path", "llada_moe"), ["devices=1", "model=llada_moe"]),
        (("--model-path", "someone/new"), ["devices=1", "model=checkpoint", "model.path=someone/new"]),
        (
            ("--dcp-path", "step_1000", "--base-model", "GSAI-ML/LLaDA-8B-Instruct"),
            ["model=checkpoint", "model.dcp_path=step_1000", "model.base_model=GSAI-ML/LLaDA-8B-Instruct"],
        ),
        ((*LLADA, "--engine", "dinfer"), ["algorithm=dinfer_blockwise"]),
        ((*LLADA, "--engine", "fast-dllm"), ["algorithm=dual_cache"]),
        ((*LLADA, "--engine", "nemotron"), ["algorithm=nemotron"]),
        ((*LLADA, "--engine", "dinfer", "--algorithm", "dinfer_hierarchy"), ["algorithm=dinfer_hierarchy"]),
        ((*LLADA, "--algorithm=entropy_bound"), ["algorithm=entropy_bound"]),
        ((*LLADA, "--num-gpus", "4", "--batch-size", "32"), ["devices=4", "batch_size=32"]),
        ((*LLADA, "--gpus=2", "--num-gpus=2"), ["devices=2"]),
        ((*LLADA, "--gpu-ids", "0,2"), ["devices=2", "gpu_ids=[0,2]"]),
        ((*LLADA, "--gpu-ids", "3"), ["devices=1", "device=cuda:3"]),
        ((*LLADA, "--max-wait-time", ".5", "--port=9000"), ["max_wait_time=.5", "port=9000"]),
        ((*LLADA, "--worker-base-port", "9001", "--host", "0.0.0.0"), ["worker_base_port=9001", "host=0.0.0.0"]),
        (("model=random", "generation.threshold=0.9"), ["model=random", "generation.threshold=0.9"]),
    ],
)
def test_flags_become_arguments_that_dlm_serve_takes(
    flags: tuple[str, ...], arguments: list[str], cluster: Cluster
) -> None:
    register()
    found = local(cluster, *flags)
    assert set(arguments) <= set(found)
    config = compose_config("serve", found)
    assert config.devices == int(next(one for one in found if one.startswith("devices=")).partition("=")[2])


def test_a_server_of_several_gpus_passes_its_checks(cluster: Cluster) -> None:
    register()
    flags = ("--gpu-ids=0,2", "--batch-size=4", "--max-wait-time=0.1", "--port=9000", "--worker-base-port=9001")
    config = compose_config("serve", local(cluster, *flags, "model=random"))
    fleet = to_fleet(config, to_settings(config))
    assert (fleet.gpu_ids, fleet.port, fleet.worker_base_port) == ((0, 2), 9000, 9001)


def test_the_commit_of_a_known_base_model_is_pinned(cluster: Cluster) -> None:
    register()
    known = compose_config("serve", ["model=llada_8b_instruct"]).model.revision
    assert f"model.revision={known}" in local(cluster, "--dcp-path", "x", "--base-model", LLADA[1])


def test_a_folder_is_served_though_a_hub_id_has_its_name(cluster: Cluster) -> None:
    (cluster.work / LLADA[1]).mkdir(parents=True)
    assert {"model=checkpoint", f"model.path={LLADA[1]}"} <= {*local(cluster, *LLADA)}


ENGINES = {"dinfer": ("dinfer_",), "fast-dllm": ("basic", "prefix_cache", "dual_cache"), "nemotron": ("nemotron",)}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_offers_the_algorithms_of_its_name(engine: str, cluster: Cluster) -> None:
    offered = [name for name in sorted(ALGORITHMS) if name.startswith(ENGINES[engine])]
    assert offered
    for name in offered:
        assert f"algorithm={name}" in local(cluster, *LLADA, "--engine", engine, "--algorithm", name)


def test_streaming_needs_no_switch(cluster: Cluster) -> None:
    done = cluster.run(SCRIPT, "--local", "--dry-run", "--streaming", *LLADA)
    assert "nothing to switch" in done.stderr
    assert "stream" not in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "which model?"),
        (("--dcp-path", "x"), "needs --base-model"),
        ((*LLADA, "--base-model", "y"), "--base-model goes with --dcp-path"),
        ((*LLADA, "--dcp-path", "x", "--base-model", "y"), "two models"),
        ((*LLADA, "--engine", "vllm"), "none of dinfer, fast-dllm, nemotron"),
        ((*LLADA, "--engine", "fast-dllm", "--algorithm", "dinfer_soft"), "none of --engine fast-dllm"),
        ((*LLADA, "--gpus", "0"), "--gpus 0 is no whole number"),
        ((*LLADA, "--gpus", "2", "--num-gpus", "4"), "differ: 2 and 4"),
        ((*LLADA, "--gpus", "4", "--gpu-ids", "0,2"), "--gpus 4 and --gpu-ids 0,2 differ"),
        ((*LLADA, "--gpu-ids", "0-2"), "no list such as 0,2"),
        ((*LLADA, "--batch-size", "many"), "--batch-size many"),
        ((*LLADA, "--max-wait-time", "1s"), "no number of seconds"),
        ((*LLADA, "--port"), "--port needs a value"),
        ((*LLADA, "--port="), "--port needs a value"),
        ((*LLADA, "--quick"), "--quick is no flag"),
        ((*LLADA, "fast"), "neither a flag nor key=value"),
        ((*LLADA, "model=random"), "two models"),
        ((*LLADA, "api_key=x"), "export DLM_API_KEY"),
        ((*LLADA, "--local", "--mem", "64G"), "for SLURM"),
        ((*LLADA, "--local", "--container-image", "x"), "launch/Dockerfile"),
        ((*LLADA, "--gpu-ids", "0,2"), "SLURM hands out GPUs"),
        ((*LLADA, "--container-mounts", "/a:/a"), "needs --container-image"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: tuple[str, ...], message: str, cluster: Cluster) -> None:
    cluster.refuses(message, SCRIPT, *flags)


def test_a_server_here_takes_the_place_of_the_script(cluster: Cluster) -> None:
    with cluster.started(SCRIPT, "--local", "--gpus", "2", *LLADA, FAKE_RUNS="1") as process:
        cluster.wait_for(1, process)
        process.send_signal(signal.SIGTERM)
        assert cluster.finish(process).returncode == 0
    assert [event for event, _ in cluster.ends()] == ["SIGTERM", "ended"]
    assert cluster.calls("python")[-1] == ["-m", "dlm.serve", "devices=2", "model=llada_8b_instruct", "algorithm=auto"]
    assert cluster.environment("dlm.serve").items() >= SECRETS.items()


def test_the_exit_code_of_a_server_here_is_its_own(cluster: Cluster) -> None:
    assert cluster.run(SCRIPT, "--local", *LLADA, FAKE_CODE="4").returncode == 4


def test_without_its_packages_nothing_is_started_here(cluster: Cluster) -> None:
    (cluster.folder / "modules" / "uvicorn.py").unlink()
    done = cluster.run(SCRIPT, "--local", *LLADA)
    assert done.returncode == 2
    assert "pip install 'dlm[serve,router]'" in done.stderr
    cluster.remove("python")
    cluster.refuses("python is not on the PATH", SCRIPT, "--local", *LLADA)


def test_a_job_is_submitted_with_what_slurm_wants_to_know(cluster: Cluster) -> None:
    cluster.answer("sbatch", [0, "4711;cluster\n"])
    flags = ("--gpus", "8", "--nodes", "2", "--time", "8:00:00", "--mem", "128G", "--partition", "long")
    done = cluster.run(SCRIPT, *flags, *LLADA, "--batch-size", "64", ACCOUNT="mine")
    assert done.returncode == 0, done.stderr
    [command] = cluster.calls("sbatch")
    script = str(LAUNCH / "serve.sbatch")
    options = {"--parsable", "--nodes=2", "--time=8:00:00", "--mem=128G", "--gpus-per-node=8"}
    assert {*command[: command.index(script)]} == options | {"--account=mine", "--partition=long"}
    assert after(command, script) == ["model=llada_8b_instruct", "algorithm=auto", "batch_size=64"]
    assert "job 4711;" in done.stdout
    assert "launch/connect.sh 4711\n" in done.stdout
    assert "scancel --batch --signal=TERM 4711\n" in done.stdout
    assert cluster.environment("--parsable").items() >= SECRETS.items()


def test_the_container_of_a_job_goes_by_the_environment(cluster: Cluster) -> None:
    cluster.answer("sbatch", [0, "4711\n"])
    flags = ("--container-image", "dlm.sqsh", "--container-mounts", "/data:/data", "--account", "mine")
    assert cluster.run(SCRIPT, *LLADA, *flags, ACCOUNT="other").returncode == 0
    found = cluster.environment("--parsable", "--account=mine")
    assert (found["DLM_CONTAINER_IMAGE"], found["DLM_CONTAINER_MOUNTS"]) == ("dlm.sqsh", "/data:/data")


def test_a_job_that_slurm_refuses_is_no_success(cluster: Cluster) -> None:
    cluster.answer("sbatch", [1, ""])
    done = cluster.run(SCRIPT, *LLADA)
    assert done.returncode == 1
    assert "job" not in done.stdout
    cluster.remove("sbatch")
    cluster.refuses("run this on a SLURM login machine, or say --local", SCRIPT, *LLADA)
