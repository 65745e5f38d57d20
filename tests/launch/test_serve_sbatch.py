"""A server under SLURM: which steps are started with which arguments, and how they end."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dlm.cli.command_line import compose_config
from dlm.serving.config import register, to_fleet, to_settings
from tests.launch.cluster import LAUNCH, SECRETS, Cluster, after

SCRIPT = "serve.sbatch"
MODEL = ("model=random", "batch_size=16")


@contextmanager
def serving(
    cluster: Cluster, *arguments: str, nodes: int = 1, **extra: str
) -> Iterator[tuple[subprocess.Popen[str], list[str], list[list[str]]]]:
    """The script with all its servers running, the router's command line, and those of the workers by machine."""
    with cluster.started(SCRIPT, *arguments, **cluster.job(nodes=nodes, FAKE_RUNS="1", **extra)) as process:
        cluster.wait_for(nodes + 1, process)
        servers = [call for call in cluster.calls("python") if call[:2] == ["-m", "dlm.serve"]]
        [router] = [call for call in servers if "router=only" in call]
        yield process, router, sorted((call for call in servers if "router=none" in call), key=place)


def place(worker: Sequence[str]) -> int:
    return next(int(one.partition("=")[2]) for one in worker if one.startswith("first_worker="))


def stop(cluster: Cluster, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    process.send_signal(signal.SIGTERM)
    return cluster.finish(process)


def steps(cluster: Cluster) -> tuple[list[str], list[str], list[str]]:
    """What srun was given for the check, the workers and the router; the last two are started at once."""
    check, *servers = cluster.calls("srun")
    [workers] = [step for step in servers if "--overlap" not in step]
    [router] = [step for step in servers if "--overlap" in step]
    return check, workers, router


def run_dir(cluster: Cluster) -> Path:
    return cluster.work / "outputs" / "serve" / "slurm-123"


def server(argv: Sequence[str]) -> list[str]:
    """The role of the server with this command line."""
    return [one for one in argv if one.startswith(("router=", "first_worker="))]


def test_one_machine_gets_a_check_then_workers_and_a_router(cluster: Cluster) -> None:
    with serving(cluster, *MODEL, SLURM_GPUS_ON_NODE="4") as (process, router, [workers]):
        done = stop(cluster, process)
    assert done.returncode == 0, done.stderr
    folder, urls = run_dir(cluster), ",".join(f"http://n1:{port}" for port in (8001, 8002, 8003, 8004))
    common = [*MODEL, f"worker_urls=[{urls}]", "host=0.0.0.0"]
    assert workers == [
        *("-m", "dlm.serve", "router=none", f"run_dir={folder}/node-0", "first_worker=0"),
        *(*common, "devices=4", "worker_base_port=8001"),
    ]
    assert router == ["-m", "dlm.serve", "router=only", f"run_dir={folder}", *common, "port=8000"]
    assert f"run folder: {folder}\n" in done.stdout
    assert "launch/connect.sh 123" in done.stdout
    check, first, second = steps(cluster)
    assert after(check, "python", "-c")
    assert {"--nodes=1", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= {*first}
    assert {"--overlap", "--nodes=1", "--ntasks=1", "--nodelist=n1"} <= {*second}


def test_two_machines_have_workers_each_and_one_router_that_knows_all(cluster: Cluster) -> None:
    arguments = (*MODEL, "port=9000", "worker_base_port=9101", "devices=2")
    with serving(cluster, *arguments, nodes=2, SLURM_GPUS_ON_NODE="8") as (process, router, workers):
        done = stop(cluster, process)
    assert done.returncode == 0, done.stderr
    urls = "worker_urls=[http://n1:9101,http://n1:9102,http://n2:9101,http://n2:9102]"
    assert [server(one) for one in workers] == [["router=none", f"first_worker={first}"] for first in (0, 2)]
    for number, one in enumerate(workers):
        assert {urls, f"run_dir={run_dir(cluster)}/node-{number}", "devices=2", "worker_base_port=9101"} <= {*one}
    assert {urls, "port=9000", *MODEL} <= {*router}
    check, first, second = steps(cluster)
    assert {"--nodes=2"} <= {*check} & {*first}, "every machine is checked"
    assert {"--nodes=1", "--nodelist=n1"} <= {*second}


@pytest.mark.parametrize("nodes", [1, 2])
def test_dlm_serve_understands_the_arguments(nodes: int, cluster: Cluster) -> None:
    register()
    arguments = ("model=random", "start_timeout=60", "generation.threshold=0.8", "log_format=json")
    with serving(cluster, *arguments, nodes=nodes, SLURM_GPUS_ON_NODE="2") as (process, router, workers):
        stop(cluster, process)
    fleets = []
    for command in (router, *workers):
        config = compose_config("serve", after(command, "-m", "dlm.serve"))
        fleets.append(to_fleet(config, to_settings(config)))
    assert all(one.peers == fleets[0].peers and len(one.peers) == 2 * nodes for one in fleets)
    assert all(one.start_timeout == 60 for one in fleets)
    assert [one.first_worker for one in fleets[1:]] == [2 * number for number in range(nodes)]


def test_steps_find_keys_and_cores_in_their_environment(cluster: Cluster) -> None:
    with serving(cluster, *MODEL, DLM_RUN_DIR="run") as (process, _, _):
        stop(cluster, process)
    for role in ("router=none", "router=only"):
        found = cluster.environment(role)
        assert {key: found[key] for key in SECRETS} == SECRETS
        assert found["SRUN_CPUS_PER_TASK"] == "8"
        assert "DLM_RUN_DIR" not in found, "each machine has a folder of its own"


def test_without_a_key_one_machine_serves_itself_alone(cluster: Cluster) -> None:
    with serving(cluster, *MODEL, DLM_API_KEY="") as (process, router, [workers]):
        stop(cluster, process)
    for one in (router, workers):
        assert {"host=127.0.0.1", "worker_urls=[http://127.0.0.1:8001]"} <= {*one}


def test_without_a_key_several_machines_are_refused_unless_they_are_opened(cluster: Cluster) -> None:
    job = cluster.job(nodes=2, DLM_API_KEY="")
    cluster.refuses("DLM_API_KEY is not set", SCRIPT, *MODEL, **job)
    cluster.refuses("host=localhost: the router could not reach", SCRIPT, *MODEL, "host=localhost", **job)
    with serving(cluster, *MODEL, "host=0.0.0.0", nodes=2, DLM_API_KEY="") as (process, _, _):
        assert stop(cluster, process).returncode == 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("run_dir=x", "DLM_RUN_DIR=x"),
        ("router=only", "decided here"),
        ("worker_urls=[http://a:1]", "decided here"),
        ("first_worker=1", "decided here"),
        ("api_key=abc", "export DLM_API_KEY"),
        ("hf_token=abc", "export DLM_API_KEY or HF_TOKEN"),
        ("--nodes=2", "before the script's name"),
        ("demo", "no key=value"),
    ],
)
def test_what_cannot_be_meant_is_refused(argument: str, message: str, cluster: Cluster) -> None:
    cluster.refuses(message, SCRIPT, argument, **cluster.job())


def test_it_wants_to_be_submitted(cluster: Cluster) -> None:
    cluster.refuses("sbatch launch/serve.sbatch", SCRIPT, *MODEL)


def test_every_step_runs_in_the_container(cluster: Cluster) -> None:
    image, cache = cluster.folder / "dlm.sqsh", cluster.folder / "hub"
    image.touch()
    cache.mkdir()
    wishes = {"DLM_CONTAINER_IMAGE": str(image), "DLM_CONTAINER_MOUNTS": "/data:/data", "HF_HOME": str(cache)}
    common = cluster.folder / "common"
    with serving(cluster, *MODEL, nodes=2, DLM_RUN_DIR=str(common), **wishes) as (process, router, _):
        stop(cluster, process)
    assert f"run_dir={common}" in router
    mounts = ",".join(f"{path}:{path}" for path in (cluster.work, common, cache, "/data"))
    for step in steps(cluster):
        assert f"--container-image={image}" in step
        assert f"--container-mounts={mounts}" in step
        assert f"--container-workdir={cluster.work}" in step


def test_an_image_of_a_registry_is_no_file(cluster: Cluster) -> None:
    with serving(cluster, *MODEL, DLM_CONTAINER_IMAGE="registry#dlm:1") as (process, _, _):
        stop(cluster, process)
    folders = f"{cluster.work}:{cluster.work},{run_dir(cluster)}:{run_dir(cluster)}"
    assert f"--container-mounts={folders}" in cluster.calls("srun")[0]


def test_a_container_that_cannot_be_is_refused(cluster: Cluster) -> None:
    job = cluster.job()
    cluster.refuses("gone.sqsh: no such file", SCRIPT, *MODEL, **job, DLM_CONTAINER_IMAGE="/gone.sqsh")
    cluster.refuses("DLM_CONTAINER_IMAGE is not", SCRIPT, *MODEL, **job, DLM_CONTAINER_MOUNTS="/a:/a")


@pytest.mark.parametrize(("module", "extra"), [("vllm_router", "dlm[router]"), ("fastapi", "dlm[serve]")])
def test_what_is_missing_is_said_before_anything_starts(module: str, extra: str, cluster: Cluster) -> None:
    (cluster.folder / "modules" / f"{module}.py").unlink()
    done = cluster.run(SCRIPT, *MODEL, **cluster.job(nodes=2))
    assert done.returncode == 3
    assert f"lacks {module}: pip install '{extra}'" in done.stderr
    assert len(cluster.calls("srun")) == 1
    assert not [call for call in cluster.calls("python") if "dlm.serve" in call]


def test_the_check_looks_for_all_that_a_server_imports() -> None:
    project = tomllib.loads((LAUNCH.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.split(r"[>=<\[]", one)[0].replace("-", "_") for one in project["serve"]}
    trees = [ast.parse(path.read_text()) for path in (LAUNCH.parent / "dlm" / "serving").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {one.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for one in node.names}
    looked_for = set(re.findall(r'"(\w+)": "dlm', (LAUNCH / SCRIPT).read_text()))
    assert looked_for == (imported & names) | {"dlm", "vllm_router"}


def test_workers_finish_before_the_router_is_told(cluster: Cluster) -> None:
    with serving(cluster, *MODEL, nodes=2) as (process, router, workers):
        done = stop(cluster, process)
    assert done.returncode == 0, done.stderr
    ends = [(event, server(argv)) for event, argv in cluster.ends()]
    assert sorted(ends[:4]) == sorted((event, server(one)) for event in ("SIGTERM", "ended") for one in workers)
    assert ends[4:] == [(event, server(router)) for event in ("SIGTERM", "ended")]


def test_the_exit_code_is_that_of_workers_that_did_not_end_well(cluster: Cluster) -> None:
    with serving(cluster, *MODEL, FAKE_CODE="4") as (process, _, _):
        assert stop(cluster, process).returncode == 4


@pytest.mark.parametrize(
    ("dead", "left", "code"),
    [
        ("none:7", ["router=only"], 7),
        ("only:7", ["router=none", "first_worker=0"], 7),
        ("none:0", ["router=only"], 1),  # unasked it is no success
    ],
)
def test_a_step_that_ends_by_itself_ends_the_job(dead: str, left: list[str], code: int, cluster: Cluster) -> None:
    done = cluster.run(SCRIPT, *MODEL, **cluster.job(FAKE_RUNS="1", FAKE_DEAD=dead))
    assert done.returncode == code, done.stderr
    assert "a step ended by itself" in done.stderr
    assert [(event, server(argv)) for event, argv in cluster.ends()] == [("SIGTERM", left), ("ended", left)]


def test_where_scancel_does_not_get_through_srun_is_ended(cluster: Cluster) -> None:
    cluster.remove("scancel")
    with serving(cluster, *MODEL) as (process, _, _):
        done = stop(cluster, process)
    assert done.returncode == 137, done.stderr
    assert cluster.ends() == [], "srun kills"


def test_addresses_of_an_earlier_start_are_forgotten(cluster: Cluster) -> None:
    folder = run_dir(cluster)
    (folder / "node-0").mkdir(parents=True)
    old = [folder / "server.json", folder / "node-0" / "server.json"]
    for path in old:
        path.write_text('{"status": "ready"}')
    with serving(cluster, *MODEL) as (process, _, _):
        assert not any(path.exists() for path in old)
        stop(cluster, process)
