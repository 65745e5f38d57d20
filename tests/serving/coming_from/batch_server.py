"""The batch server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai

from tests.running import wait_until
from tests.serving.coming_from.places import Launchers, serve
from tests.serving.coming_from.table import SORTED, chat, row
from tests.serving.server import Server

CHAT = "/v1/chat/completions"
STATS = {
    "max_batch_size", "max_wait_time", "pending_requests", "running_requests", "total_batches_processed",
    "avg_batch_size", "batch_size_histogram",
}  # fmt: skip


@row("`--batch-size` 8", "extra GPU memory by batch size: 8 to 12 GB for 8")
def batch_size(launchers: Launchers, alone: Server) -> None:
    _, settings = launchers.local("--model-path", "demo")
    assert (settings.batch_size, settings.gpu_memory_utilization) == (8, 0.9)
    found = httpx.get(f"{alone.url}/batch/stats").json()
    assert found["max_batch_size"] == 8
    assert found["arena_slots"] > 0


@row("a batch starts when it is full or when the oldest has waited `--max-wait-time`")
def fires(alone: Server) -> None:
    """The server waits a tenth of a second, and has eight places."""
    begun = time.perf_counter()
    assert httpx.post(alone.url + CHAT, json=chat(max_tokens=16)).status_code == 200
    assert time.perf_counter() - begun >= 0.1
    before = httpx.get(f"{alone.url}/batch/stats").json()["batch_size_histogram"].get("8", 0)
    body = {"prompts": ["Sort 7 3 12."] * 8, "gen_length": 16}
    assert len(httpx.post(f"{alone.url}/v1/generate_batch", json=body).json()["request_ids"]) == 8
    wait_until(
        lambda: httpx.get(f"{alone.url}/batch/stats").json()["batch_size_histogram"].get("8", 0) > before,
        "a full batch was decoded",
    )


@row("`eval_llada.py` (NeMo-Skills) works unchanged")
def nemo_skills(alone: Server) -> None:
    """The fields that NeMo-Skills sends to a server it takes for vLLM, from many clients at once."""
    extra = {"min_p": 0.0, "repetition_penalty": 1.0, "spaces_between_special_tokens": False, "steps": 128}
    assert httpx.post(f"{alone.url}/tokenize", json={"prompt": "Test prompt"}).status_code == 404
    with openai.OpenAI(base_url=f"{alone.url}/v1", api_key="EMPTY", max_retries=3) as client:

        def ask(seed: int) -> str | None:
            answer = client.chat.completions.create(
                model="llada-8b-instruct",
                messages=[{"role": "system", "content": ""}, {"role": "user", "content": "Sort 7 3 12."}],
                max_tokens=64,
                temperature=0.0,
                top_p=0.95,
                seed=seed,
                stop=None,
                logprobs=False,
                top_logprobs=None,
                n=1,
                frequency_penalty=0.0,
                presence_penalty=0.0,
                stream=False,
                timeout=60,
                extra_body=extra,
            )
            return answer.choices[0].message.content

        with ThreadPoolExecutor(16) as pool:
            assert len(set(pool.map(ask, range(32)))) == 1
    for field, value in (("min_p", 0.1), ("repetition_penalty", 1.2), ("frequency_penalty", 0.5)):
        refused = httpx.post(alone.url + CHAT, json=chat(**{field: value}))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


@row("`GET /batch/stats`", '`watch -n 1 "curl -s .../batch/stats \\| jq"`')
def stats(alone: Server) -> None:
    assert httpx.get(f"{alone.url}/batch/stats").json().keys() >= STATS
    assert "dlm_forwards_total" in httpx.get(f"{alone.url}/metrics").text


@row('"is it batching?" by `/batch/stats`')
def batching(alone: Server) -> None:
    found = httpx.get(f"{alone.url}/batch/stats").json()
    sizes = {int(size): count for size, count in found["batch_size_histogram"].items()}
    assert sum(sizes.values()) == found["total_batches_processed"]
    mean = sum(size * count for size, count in sizes.items()) / max(1, sum(sizes.values()))
    assert abs(mean - found["avg_batch_size"]) < 1e-3


@row("`--mem 128G --time 8:00:00 --gpus 2`")
def job(launchers: Launchers) -> None:
    flags = ("--batch-size", "16", "--gpus", "2", "--mem", "128G", "--time", "8:00:00")
    command = launchers.slurm("--model-path", "GSAI-ML/LLaDA-8B-Instruct", *flags)
    assert {"--mem=128G", "--time=8:00:00", "--gpus-per-node=2", "batch_size=16"} <= {*command}


@row("`ls -la /path/to/your/model`")
def path(tmp_path: Path) -> None:
    refused = serve("model=checkpoint", "model.path=/path/to/your/model", cwd=tmp_path)
    assert refused.returncode == 2
    assert "model.path=/path/to/your/model: no such folder" in refused.stderr


@row("clients without `max_tokens` and `extra_body`")
def plain(fleet: Server) -> None:
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="dummy") as client:
        response = client.chat.completions.create(
            model="llada-8b-instruct", messages=[{"role": "user", "content": "Sort 7 3 12."}]
        )
    assert response.choices[0].message.content == SORTED
