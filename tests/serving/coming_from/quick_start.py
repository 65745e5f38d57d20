"""The quick start."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import openai
import pytest

from dlm.decoding.algorithms import resolve
from dlm.models.families import LLADA, NEMOTRON
from tests.launch.cluster import LAUNCH
from tests.running import python, run
from tests.serving.coming_from.places import MODEL, Launchers, serve
from tests.serving.coming_from.table import SORTED, chat, row
from tests.serving.server import Server

INSTRUCT = "GSAI-ML/LLaDA-8B-Instruct"
CHAT = "/v1/chat/completions"


@row("`pip install fastapi uvicorn torch transformers`")
def install() -> None:
    project = tomllib.loads((LAUNCH.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = " ".join([*project["dependencies"], *extras["serve"]])
    assert all(name in names for name in ("fastapi", "uvicorn", "torch", "transformers"))
    assert "router" in extras


@row("`start_llada_batch_server.sh --local`", "`/tmp/llada_worker_0.log`")
def local(alone: Server) -> None:
    assert httpx.get(f"{alone.url}/ready").status_code == 200
    assert any("ready url=" in line for line in alone.lines)


@row("`start_llada_batch_server.sh` without `--local`", "`ACCOUNT`")
def slurm(launchers: Launchers) -> None:
    command = launchers.slurm("--model-path", INSTRUCT, ACCOUNT="mine")
    assert "--account=mine" in command
    assert command[-2:] == ["model=llada_8b_instruct", "algorithm=auto"]
    assert str(LAUNCH / "serve.sbatch") in command
    assert "--account=other" in launchers.slurm("--model-path", INSTRUCT, "--account", "other")


@row("`--model-path GSAI-ML/LLaDA-8B-Instruct`")
def known_model(launchers: Launchers) -> None:
    config, settings = launchers.local("--model-path", INSTRUCT)
    assert (config.model.path, len(config.model.revision)) == (INSTRUCT, 40)
    assert settings.names == (MODEL, MODEL.lower())


@row("`--model-path nvidia/Nemotron-Diffusion-Research-4B-v0`")
def other_model(launchers: Launchers, tmp_path: Path) -> None:
    name = "nvidia/Nemotron-Diffusion-Research-4B-v0"
    config, _ = launchers.local("--model-path", name, "--revision", "abc123")
    assert (config.model.path, config.model.revision) == (name, "abc123")
    refused = serve("model=checkpoint", f"model.path={name}", cwd=tmp_path)
    assert refused.returncode == 2
    assert "set a commit" in refused.stderr
    assert launchers.local("--model-path", "nemotron_8b")[0].model.path == "nvidia/Nemotron-Labs-Diffusion-8B"


@row("`--dcp-path FOLDER --base-model ID`")
def dcp(launchers: Launchers, fleet: Server) -> None:
    """The fleet was started with these."""
    assert httpx.post(fleet.url + CHAT, json=chat()).json()["choices"][0]["message"]["content"] == SORTED
    assert "--base-model" in launchers.refused("--local", "--dcp-path", "folder")


@row("`--gpus 8`")
def gpus(launchers: Launchers) -> None:
    assert launchers.local("--gpus", "8", "--model-path", INSTRUCT, "--batch-size", "16")[0].devices == 8
    assert "--gpus-per-node=8" in launchers.slurm("--gpus", "8", "--model-path", INSTRUCT)


@row("`--engine dinfer`", "`--engine fast-dllm`", "`--algorithm dinfer_hierarchy`, `--algorithm dual_cache`")
def engines(launchers: Launchers, alone: Server) -> None:
    model = ("--model-path", INSTRUCT)
    assert launchers.local(*model, "--engine", "dinfer")[1].algorithm == "dinfer_blockwise"
    assert launchers.local(*model, "--engine", "fast-dllm")[1].algorithm == "dual_cache"
    for name in ("dinfer_hierarchy", "dual_cache"):
        assert launchers.local(*model, "--algorithm", name)[1].algorithm == name
    assert launchers.local(*model, "--engine", "dinfer", "--algorithm", "dinfer_credit")
    assert "none of --engine dinfer" in launchers.refused("--local", *model, "--engine=dinfer", "--algorithm=klass")
    forwards = {}
    for field in ({"steps": 4}, {"threshold": 0.9}):
        body = chat(max_tokens=32, block_length=32, generation_algorithm="dual_cache", **field)
        forwards[next(iter(field))] = httpx.post(alone.url + CHAT, json=body).json()["dlm"]["nfe"]
    assert forwards["steps"] == 4
    assert forwards["threshold"] != 4


@row("engine chosen by the model")
def auto(launchers: Launchers) -> None:
    assert launchers.local("--model-path", INSTRUCT)[1].algorithm == "auto"
    assert (resolve("auto", LLADA), resolve("auto", NEMOTRON)) == ("dinfer_blockwise", "nemotron")


@row("`--batch-size 16`", "`--max-wait-time 0.1`", "`--port 9000`", "`--worker-base-port 9001`")
def numbers(launchers: Launchers) -> None:
    config, settings = launchers.local("--model-path", INSTRUCT)
    assert (config.port, config.worker_base_port, settings.max_wait_time) == (8000, 8001, 0)
    assert config.host == "127.0.0.1"
    flags = ("--batch-size", "16", "--max-wait-time", "0.1", "--port", "9000", "--worker-base-port", "9001")
    config, settings = launchers.local("--model-path", INSTRUCT, *flags)
    assert (config.port, config.worker_base_port) == (9000, 9001)
    assert (settings.batch_size, settings.max_wait_time) == (16, 0.1)


@row("`HF_TOKEN`")
def token(launchers: Launchers) -> None:
    """Each run of a stand-in looks for the token on the command lines, too (`Cluster.finish`)."""
    launchers.local("--model-path", INSTRUCT)
    assert launchers.cluster.environment("dlm.serve")["HF_TOKEN"] == launchers.cluster.env["HF_TOKEN"]
    assert "no flag" in launchers.refused("--local", "--hf-token", "x")


@row(
    '`base_url="http://localhost:8000/v1"`, `api_key="dummy"`',
    '`model="llada-8b-instruct"`',
    '`extra_body={"steps": 128}`',
    "`response.choices[0].message.content`",
)
def openai_package(alone: Server) -> None:
    with openai.OpenAI(base_url=f"{alone.url}/v1", api_key="dummy", max_retries=0) as client:
        response = client.chat.completions.create(
            model="llada-8b-instruct",
            messages=[{"role": "user", "content": "Sort 7 3 12."}],
            max_tokens=128,
            extra_body={"steps": 128},
        )
        assert response.choices[0].message.content == SORTED
        assert response.usage is not None
        assert {"nfe", "algorithm", "seed"} <= (response.model_extra or {})["dlm"].keys()
        with pytest.raises(openai.NotFoundError, match="served: LLaDA-8B-Instruct, llada-8b-instruct"):
            client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}])


@row("`requests.post(...)` without `model`", "`curl -X POST .../v1/chat/completions`")
def plain_http(alone: Server) -> None:
    body = '{"messages": [{"role": "user", "content": "Sort 7 3 12."}], "max_tokens": 64, "steps": 64}'
    answer = httpx.post(alone.url + CHAT, content=body, headers={"Content-Type": "application/json"}).json()
    assert answer["choices"][0]["message"]["content"] == SORTED
    assert answer["model"] == MODEL


@row(
    "`steps`: 128, 1 to 512",
    "`max_tokens`: 128",
    "`temperature`: 0.0, 0.0 to 2.0",
    "`block_length`: 32",
    '`{"steps": 32, "max_tokens": 80}` for speed',
)
def parameters(alone: Server) -> None:
    found = httpx.get(f"{alone.url}/generation/algorithms").json()
    told = {one["name"]: (one["default"], one["minimum"], one["maximum"]) for one in found["parameters"]}
    assert told["steps"] == told["gen_length"] == (128, 1, 8192)
    assert told["temperature"] == (0.0, 0.0, 2.0)
    assert told["block_length"] == (32, 1, 8192)
    [blockwise] = [one for one in found["algorithms"] if one["name"] == found["default"]]
    assert [one["name"] for one in blockwise["parameters"]] == ["threshold"]
    for body in ({"steps": 0}, {"steps": 8193}, {"temperature": 2.1}, {"max_tokens": 8193}, {"block_length": 0}):
        answer = httpx.post(alone.url + CHAT, json=chat(**body))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(body)))
    scheduled = chat("Hi", steps=32, max_tokens=80, ignore_eos=True, generation_algorithm="basic")
    assert httpx.post(alone.url + CHAT, json=scheduled).json()["dlm"]["nfe"] == 32
    bounded = chat("Hi", max_tokens=80, ignore_eos=True, max_nfe=5)
    assert httpx.post(alone.url + CHAT, json=bounded).json()["dlm"]["nfe"] <= 5
    assert len(httpx.post(alone.url + CHAT, json=chat("Hi", max_tokens=3)).json()["choices"][0]["message"]) == 3


@row("`GET /health`")
def health(alone: Server, fleet: Server) -> None:
    assert httpx.get(f"{alone.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{alone.url}/ready").json() == {"status": "ready"}
    assert httpx.get(f"{fleet.url}/health").status_code == 200


@row("`GET /stats` with several GPUs")
def stats(alone: Server) -> None:
    found = httpx.get(f"{alone.url}/stats").json()
    assert (found["total_workers"], found["healthy_workers"]) == (1, 1)


@row("`llada_api_client.py`")
def examples(alone: Server, tmp_path: Path) -> None:
    folder = LAUNCH / "examples"
    assert (folder / "requests_client.py").is_file()
    assert (folder / "curl.sh").is_file()
    command = [sys.executable, str(folder / "openai_client.py"), "Sort 7 3 12."]
    done = run(command, tmp_path, DLM_BASE_URL=f"{alone.url}/v1")
    assert done.returncode == 0, done.stderr
    assert f"answer: {SORTED}" in done.stdout


@row("`/tmp/llada_load_balancer.log`")
def logs(fleet: Server, workplace: Path) -> None:
    folder = workplace / "run" / "logs"
    assert {path.name for path in folder.iterdir()} == {"router.log", "worker_0.log", "worker_1.log"}


@row("429 from the hub at start: the script fetches once")
def fetched_once(tmp_path: Path, slow: None) -> None:
    model = ("model=llada_8b_instruct", "run_dir=run", "devices=2")
    failed = serve(*model, cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert failed.returncode == 1
    assert "cannot fetch" in failed.stderr
    assert "worker" not in failed.stderr + failed.stdout
    assert not (tmp_path / "run").exists()


@row("workers crash at start: staggered start and health checks")
def start(fleet: Server) -> None:
    said = "".join(fleet.lines)
    assert "worker 0 is ready" in said
    assert "worker 1 is ready" in said


@row("CUDA OOM: `--batch-size 4`, `--gpus 4`")
def memory(tmp_path: Path, slow: None) -> None:
    failed = serve("gpu_memory_utilization=0.000001", "device=cpu", cwd=tmp_path)
    assert failed.returncode == 2
    assert "leaves 0 MiB besides the weights" in failed.stderr


@row("`No module named 'nemo_rl'`: use HuggingFace models")
def nemo_rl() -> None:
    found = subprocess.run(["grep", "-rlE", "(import|from) nemo_rl", str(LAUNCH.parent / "dlm")], check=False)
    assert found.returncode == 1


@row("`nvidia-smi -l 1`")
def arena(alone: Server) -> None:
    assert {"arena_slots", "arena_slots_used"} <= httpx.get(f"{alone.url}/batch/stats").json().keys()


@row("throughput by GPUs: 12 to 86 req/s", "`test_batch_server.py`")
def bench(alone: Server, tmp_path: Path, slow: None) -> None:
    done = run(python("dlm.bench", "target=server", f"url={alone.url}", "workload=load_smoke"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "requests/s" in done.stdout
