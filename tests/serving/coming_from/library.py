"""The API reference of dLLM-Serve: the library, and its server."""

from __future__ import annotations

import importlib
from inspect import signature
from typing import Any

import httpx
import pytest

import dlm
from dlm import LLM, SamplingParams, SparseConfig
from dlm.errors import ConfigError
from tests.running import wait_until
from tests.serving.coming_from.table import row
from tests.serving.server import Server


@row("`from dllmserve import LLM, SamplingParams`", "`from dllmserve.sparse.state import SparseConfig`")
def names() -> None:
    assert {"LLM", "SamplingParams", "SparseConfig"} <= set(dlm.__all__)
    assert importlib.import_module("dlm").LLM is LLM


@row('`LLM("./LLaDA-8B-Instruct", enforce_eager=True, tensor_parallel_size=1, max_model_len=4096)`')
@row("OOM: lower `max_model_len`")
def constructor(model: str) -> None:
    """The demo has 1024 positions."""
    with pytest.raises(ConfigError, match="the model has 1024 positions"):
        LLM(model, enforce_eager=True, tensor_parallel_size=1, max_model_len=4096)
    with LLM(model, enforce_eager=True, tensor_parallel_size=1, max_model_len=512, max_num_seqs=4) as half:
        assert half.max_model_len == 512
        slots = half.options.arena_tokens
    with LLM(model, max_num_seqs=4) as whole:
        assert slots is not None
        assert whole.options.arena_tokens == 2 * slots
    with pytest.raises(TypeError, match="max_len"):
        LLM(model, max_len=3)  # type: ignore[call-arg]  # the point


@row("`trust_remote_code=True` by default")
def remote_code(model: str) -> None:
    with pytest.raises(ConfigError, match="never run here"):
        LLM(model, trust_remote_code=True)


@row("`generate(prompts, sampling_params, sparse_configs, use_tqdm)`", '`outputs[0]["text"]`, `["token_ids"]`')
@row("one `SamplingParams` for each prompt", "`gen_length` 128, `steps` 128, up to 8192", "`ignore_eos` False")
def generate(llm: LLM) -> None:
    assert list(signature(llm.generate).parameters) == ["prompts", "sampling_params", "sparse_configs", "use_tqdm"]
    params = [SamplingParams(temperature=0.0, gen_length=size, steps=size, cfg_scale=0.0) for size in (32, 64)]
    outputs = llm.generate(["Sort 7 3 12.", "Hello, world!"], params, use_tqdm=False)
    assert outputs[0]["text"] == "Sorted: 3 7 12"
    assert {"text", "token_ids", "finish_reason", "nfe", "step_map", "usage"} <= outputs[1].keys()
    with pytest.raises(ValueError, match="2 sampling_params for 3 prompts"):
        llm.generate(["a", "b", "c"], params)
    [whole] = llm.generate([[5, 6]], SamplingParams(temperature=0.0, gen_length=32, ignore_eos=True), use_tqdm=False)
    assert "error" not in whole


@row("`temperature` 1.0", "`cfg_scale` 0.0", "`max_tokens` 64, for autoregressive models")
def defaults(llm: LLM, alone: Server) -> None:
    params = SamplingParams()
    assert (params.temperature, params.cfg_scale, params.ignore_eos) == (1.0, 0.0, False)
    assert (params.gen_length, params.steps, params.max_tokens) == (128, 128, None)
    [cut] = llm.generate(["Sort 7 3 12."], SamplingParams(temperature=0.0, max_tokens=2), use_tqdm=False)
    assert len(cut["token_ids"]) == 2
    told = httpx.get(f"{alone.url}/generation/algorithms").json()["parameters"]
    assert next(one["default"] for one in told if one["name"] == "temperature") == 0.0


@row("`remasking`: `low_confidence`, `random`")
def remasking(llm: LLM, alone: Server) -> None:
    for algorithm in ("basic", "prefix_cache", "dual_cache", "sparse"):
        params = SamplingParams(gen_length=32, steps=16, temperature=0.0, remasking="random", algorithm=algorithm)
        [output] = llm.generate(["Sort 7 3 12."], params, use_tqdm=False)
        assert "error" not in output
    [refused] = llm.generate(["Sort 7 3 12."], SamplingParams(remasking="random"), use_tqdm=False)
    assert "remasking is not a parameter" in refused["error"]
    body = {"prompt": "Sort 7 3 12.", "remasking": "random", "algorithm": "basic"}
    assert result(alone, httpx.post(f"{alone.url}/v1/generate", json=body).json()["request_ids"][0])["text"]


@row("`SparseConfig(enabled, retention_ratio, delay_step, default_block_len, head_select)`")
def sparse(llm: LLM) -> None:
    theirs = SparseConfig(enabled=True, retention_ratio=0.5, delay_step=1, default_block_len=32, head_select=True)
    assert theirs == SparseConfig()
    params = SamplingParams(temperature=0.0, gen_length=64, steps=64)
    [output] = llm.generate(["Sort 7 3 12."], params, sparse_configs=theirs, use_tqdm=False)
    assert "error" not in output


@row("`gen_length=10000` is a `ValueError`")
def too_long() -> None:
    with pytest.raises(ValueError, match=r"gen_length=10000 must be a whole number, 1\.\.8192"):
        SamplingParams(gen_length=10000)


@row("OOM: `sparse_configs=`, `tensor_parallel_size=2`")
def shared(model: str, llm: LLM, slow: None) -> None:
    params = SamplingParams(temperature=0.0, gen_length=32)
    with LLM(model, tensor_parallel_size=2, device="cpu") as two:
        outputs = two.generate(["Sort 7 3 12."], params, SparseConfig(retention_ratio=0.5), use_tqdm=False)
    one = llm.generate(["Sort 7 3 12."], params, SparseConfig(retention_ratio=0.5), use_tqdm=False)
    assert outputs[0]["token_ids"] == one[0]["token_ids"]


@row("`POST /v1/generate`", '`{"request_ids": [0], "status": "submitted"}`')
@row("`GET /v1/result/{id}`: `finished` and the text", "`GET /v1/result/{id}`: `running`, `text` null")
def submit(alone: Server) -> None:
    body = {"prompt": "Tell me about AI", "temperature": 0.6, "gen_length": 256, "ignore_eos": True}
    submitted = httpx.post(f"{alone.url}/v1/generate", json={**body, "algorithm": "basic"}).json()
    assert submitted["status"] == "submitted"
    [number] = submitted["request_ids"]
    assert isinstance(number, int)
    first = httpx.get(f"{alone.url}/v1/result/{number}").json()
    assert first == {"request_id": number, "status": "running", "text": None}
    last = result(alone, number)
    assert (last["request_id"], last["status"]) == (number, "finished")
    assert last["text"]
    assert httpx.get(f"{alone.url}/v1/result/999999").status_code == 404


@row("`POST /v1/generate_batch`")
def submit_batch(alone: Server) -> None:
    body: dict[str, Any] = {"prompts": ["Prompt 1", "Prompt 2"], "temperature": 0.0, "gen_length": 64}
    submitted = httpx.post(f"{alone.url}/v1/generate_batch", json=body).json()
    assert (len(submitted["request_ids"]), submitted["status"]) == (2, "submitted")
    assert [result(alone, number)["status"] for number in submitted["request_ids"]] == ["finished"] * 2
    refused = httpx.post(f"{alone.url}/v1/generate_batch", json={**body, "prompts": ["Prompt 1", ""]})
    assert refused.status_code == 400


@row("`GET /v1/health`")
def health(alone: Server) -> None:
    assert httpx.get(f"{alone.url}/v1/health").json() == {"status": "ok"}


def result(server: Server, number: int) -> dict[str, Any]:
    """What becomes of a submitted request."""
    found: dict[str, Any] = {}

    def ended() -> bool:
        found.update(httpx.get(f"{server.url}/v1/result/{number}").json())
        return bool(found["status"] != "running")

    wait_until(ended, f"request {number} ended")
    return found
