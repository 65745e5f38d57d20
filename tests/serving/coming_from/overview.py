"""The overview of the server's folder."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.launch.cluster import LAUNCH, Cluster
from tests.running import python, run
from tests.serving.coming_from.places import Launchers, serve
from tests.serving.coming_from.table import SORTED, chat, row
from tests.serving.server import Server

CHAT = "/v1/chat/completions"


@row("`python llada_openai_server.py`, `llada_batch_server.py`", "`--help` on every script")
def entry(launchers: Launchers, tmp_path: Path) -> None:
    assert "usage: python -m dlm.serve" in serve("--help", cwd=tmp_path).stdout
    for script in ("serve.sh", "connect.sh", "serve.sbatch", "examples/slurm_demo.sh", "examples/curl.sh"):
        assert f"launch/{script}" in launchers.cluster.run(script, "--help").stdout


@row("`--num-gpus 4`")
def num_gpus(launchers: Launchers) -> None:
    assert launchers.local("--model-path", "demo", "--num-gpus", "4", "--batch-size", "32")[0].devices == 4
    assert "differ" in launchers.refused("--local", "--model-path", "demo", "--num-gpus=4", "--gpus=2")


@row("`--local --streaming`", "no streaming with batches")
def streaming(alone: Server) -> None:
    """The server was started with this flag; two streams share forwards."""
    slow = chat(max_tokens=128, ignore_eos=True, generation_algorithm="basic", stream=True)
    before = httpx.get(f"{alone.url}/batch/stats").json()["batch_size_histogram"]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: httpx.post(alone.url + CHAT, json=slow).text, range(2)))
    after = httpx.get(f"{alone.url}/batch/stats").json()["batch_size_histogram"]
    assert after.get("2", 0) > before.get("2", 0)
    for answer in answers:
        assert answer.rstrip().endswith("data: [DONE]")
        assert answer.count('"content"') >= 2, "the role, and a piece of text"


@row("`--engine nemotron`")
def nemotron(launchers: Launchers) -> None:
    assert launchers.local("--model-path", "nemotron_8b", "--engine", "nemotron")[1].algorithm == "nemotron"


@row("model and engine are checked against each other")
def checked(alone: Server, tmp_path: Path, slow: None) -> None:
    refused = serve("algorithm=nemotron", "device=cpu", cwd=tmp_path)
    assert refused.returncode in (1, 2)
    answer = httpx.post(alone.url + CHAT, json=chat(generation_algorithm="nemotron"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_algorithm")
    for said in (refused.stderr, answer.json()["error"]["message"]):
        assert "cannot run on a llada model; it runs basic, prefix_cache" in said


@row("the algorithm can change per request")
def each_request(alone: Server) -> None:
    names = ["basic", "dual_cache", "dinfer_hierarchy", "klass"] * 2
    bodies = [chat(max_tokens=16, generation_algorithm=name) for name in names]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: httpx.post(alone.url + CHAT, json=body).json(), bodies))
    assert [one["dlm"]["algorithm"] for one in answers] == names
    assert {one["choices"][0]["message"]["content"] for one in answers} == {SORTED}


@row("`connect_to_llada_server.sh --job-id 12345`")
def connect(launchers: Launchers) -> None:
    cluster = launchers.cluster
    cluster.answer("squeue", [0, f"RUNNING|n1|{cluster.work}\n"])
    cluster.answer("scontrol", [0, "n1\n"])
    path = cluster.work / "outputs" / "serve" / "slurm-12345" / "server.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": "127.0.0.1", "port": 8000, "pid": 1, "model": "demo", "status": "ready"}))
    for arguments in (("--job-id", "12345"), ("12345",)):
        done = cluster.run("connect.sh", *arguments, "--print")
        assert done.returncode == 0, done.stderr
        assert "-L 127.0.0.1:8000:127.0.0.1:8000 n1" in done.stderr


@row("`llada_slurm_example.sh`")
def demo(launchers: Launchers) -> None:
    refused = launchers.cluster.run("examples/slurm_demo.sh", "--local")
    assert refused.returncode == 2
    assert "launch/serve.sh" in launchers.cluster.run("examples/slurm_demo.sh", "--help").stdout


@row("SLURM jobs in a `.sqsh` container with mounts")
def container(launchers: Launchers) -> None:
    launchers.slurm("--model-path", "demo", "--container-image", "dlm.sqsh", "--container-mounts", "/data:/data")
    [call] = [one for one in launchers.cluster.log() if one["program"] == "sbatch"]
    assert call["env"]["DLM_CONTAINER_IMAGE"] == "dlm.sqsh"
    assert call["env"]["DLM_CONTAINER_MOUNTS"] == "/data:/data"


@row("dependencies are checked first", '`python3 -c "import fastapi, uvicorn, torch, transformers"`')
def dependencies(cluster: Cluster) -> None:
    (cluster.folder / "modules" / "fastapi.py").unlink()
    done = cluster.run("serve.sbatch", "model=demo", **cluster.job(nodes=2))
    assert done.returncode == 3
    assert "lacks fastapi: pip install 'dlm[serve]'" in done.stderr
    here = cluster.run("serve.sh", "--local", "--model-path", "demo")
    assert here.returncode == 2
    assert "pip install 'dlm[serve,router]'" in here.stderr


@row("DCP is converted to the HuggingFace format", "NeMo-RL's checkpoints")
def conversion(dcp: Path, model: str, tmp_path: Path, slow: None) -> None:
    """The fleet loads the same folder as it is."""
    source = (f"model.dcp_path={dcp}", f"model.base_model={model}")
    done = run(python("dlm.convert", *source, f"output={tmp_path}/hf"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "hf").glob("*.safetensors"))


@row("`uv sync`, `uv pip install`")
def uv() -> None:
    assert "[build-system]" in (LAUNCH.parent / "pyproject.toml").read_text()
    assert not (LAUNCH.parent / "uv.lock").exists()


@row("left-padding of batches is dealt with")
def padding(alone: Server) -> None:
    bodies = [chat("Sort " + " ".join("73142"[:count]) + ".", max_tokens=16) for count in (2, 3, 4, 5)]
    single = [httpx.post(alone.url + CHAT, json=body).json()["choices"] for body in bodies]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda body: httpx.post(alone.url + CHAT, json=body).json()["choices"], bodies))
    assert single == together
