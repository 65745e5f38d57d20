"""The multi-GPU server."""

from __future__ import annotations

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from dlm.serving.config import to_fleet
from tests.launch.cluster import Cluster
from tests.running import python, run, wait_until
from tests.serving.coming_from.places import Launchers, serve, stop, workers
from tests.serving.coming_from.table import chat, row
from tests.serving.server import Server

CHAT = "/v1/chat/completions"
LLADA = ("--model-path", "GSAI-ML/LLaDA-8B-Instruct")


def figures(fleet: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{fleet.url}/stats").json()
    return found


def healthy(fleet: Server) -> int:
    """Healthy workers; none while the one that is asked does not answer."""
    answer = httpx.get(f"{fleet.url}/stats")
    count: int = answer.json()["healthy_workers"] if answer.status_code == 200 else 0
    return count


@row("balancer on 8000, workers on 8001, 8002, ...")
def ports(launchers: Launchers) -> None:
    config, settings = launchers.local(*LLADA, "--gpus", "3")
    fleet = to_fleet(config, settings)
    assert fleet.port == 8000
    assert fleet.peers == tuple(f"http://127.0.0.1:{port}" for port in (8001, 8002, 8003))


@row("`CUDA_VISIBLE_DEVICES` for each worker", "`start_multi_gpu_server.sh --gpu-ids 0,2,4,6`")
def gpu_ids(launchers: Launchers, fleet: Server) -> None:
    """The fleet was started with `--gpu-ids 0,2`."""
    assert list(launchers.local(*LLADA, "--gpu-ids", "0,2,4,6")[0].gpu_ids) == [0, 2, 4, 6]
    variables = [dict(one.partition("=")[::2] for one in text.split("\0")) for text in workers(fleet).values()]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in variables} == {"0", "2"}


@row("round-robin", "of each worker `index`, `url`, `healthy`, `requests_served`, `errors`")
@row("`/stats`: `total_workers`, `healthy_workers`, `total_requests`, `workers`")
def shares(fleet: Server) -> None:
    before = figures(fleet)
    for _ in range(10):
        assert httpx.post(fleet.url + CHAT, json=chat(max_tokens=16)).status_code == 200
    after = figures(fleet)
    assert after.keys() == {"total_workers", "healthy_workers", "total_requests", "workers"}
    assert (after["total_workers"], after["total_requests"]) == (2, before["total_requests"] + 10)
    keys = {"index", "url", "healthy", "requests_served", "errors", "running", "pending"}
    for index, (worker, earlier) in enumerate(zip(after["workers"], before["workers"], strict=True)):
        assert worker.keys() == keys
        assert worker["index"] == index
        assert worker["url"].startswith("http://127.0.0.1:")
        assert worker["requests_served"] == earlier["requests_served"] + 5


@row("health checks every 30 s", "`--health-check-interval 10` of the balancer", "5 minutes for a request")
def intervals(launchers: Launchers) -> None:
    config, settings = launchers.local(*LLADA, "--gpus", "2")
    assert (config.health_check_interval, settings.request_timeout) == (30, 300)
    config, settings = launchers.local(*LLADA, "--gpus", "2", "--health-check-interval", "10")
    command = to_fleet(config, settings).router_command("router", 8, 9)
    assert command[command.index("--health-check-interval-secs") + 1] == "10"


@row("an unhealthy worker gets no requests, the others go on")
def dead_worker(fleet: Server) -> None:
    victim = next(iter(workers(fleet)))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: healthy(fleet) == 1, "the loss was seen")
    answers = [httpx.post(fleet.url + CHAT, json=chat(max_tokens=16)) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {200}
    wait_until(lambda: healthy(fleet) == 2, "it was started again")


@row("`start_multi_gpu_slurm.sh`")
def slurm(launchers: Launchers) -> None:
    command = launchers.slurm(*LLADA, "--gpus", "8", "--nodes", "2", "--batch-size", "16", "--port", "9000")
    assert {"--gpus-per-node=8", "--nodes=2", "batch_size=16", "port=9000"} <= {*command}


@row("`test_multi_gpu.py --num-requests 50 --concurrency 10`")
def stress(fleet: Server, tmp_path: Path) -> None:
    load = ("workload.requests=50", "workload.concurrency=[10]", "workload.rounds=1", "workload.rates=[]")
    done = run(python("dlm.bench", "target=server", f"url={fleet.url}", *load), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "10 clients" in done.stdout


@row("SLURM: logs on standard output")
def job_log(cluster: Cluster) -> None:
    job = cluster.job(nodes=1, FAKE_RUNS="1")
    with cluster.started("serve.sbatch", "model=random", **job) as process:
        cluster.wait_for(2, process)
        process.send_signal(signal.SIGTERM)
        done = cluster.finish(process)
    assert "run folder: " in done.stdout
    assert "launch/connect.sh 123" in done.stdout


@row("`ps aux`, `netstat` for workers and ports")
def server_json(fleet: Server, workplace: Path) -> None:
    told = json.loads((workplace / "run" / "server.json").read_text())
    assert told["workers"] == [worker["url"] for worker in figures(fleet)["workers"]]
    assert told["status"] in ("ready", "degraded")
    assert os.getpgid(told["pid"]) > 0


@row('"Address already in use": other ports')
def taken(tmp_path: Path, slow: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        refused = serve("devices=2", f"worker_base_port={port}", "port=1", cwd=tmp_path)
    assert refused.returncode == 2
    assert f"port={port}: Address already in use; choose another port" in refused.stderr


@row("least connections: edit the balancer", "not there: `POST /workers/add`, `DELETE /workers/{id}`")
def policy(launchers: Launchers, fleet: Server) -> None:
    config, settings = launchers.local(*LLADA, "--gpus", "2", "policy=power_of_two")
    command = to_fleet(config, settings).router_command("router", 8, 9)
    assert command[command.index("--policy") + 1] == "power_of_two"
    assert httpx.post(f"{fleet.url}/workers/add", json={}).status_code >= 400
    assert figures(fleet)["total_workers"] == 2


@row("Ctrl-C stops all processes")
def ctrl_c(short_fleet: Server) -> None:
    processes = [*workers(short_fleet), short_fleet.process.pid]
    body = chat("Hi", max_tokens=256, ignore_eos=True, generation_algorithm="basic", steps=256)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(httpx.post, short_fleet.url + CHAT, json=body) for _ in range(2)]
        wait_until(lambda: sum(one["running"] for one in figures(short_fleet)["workers"]) == 2, "they ran")
        os.killpg(short_fleet.process.pid, signal.SIGINT)
        assert [one.result().status_code for one in asked] == [200, 200]
    stop(short_fleet)
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
