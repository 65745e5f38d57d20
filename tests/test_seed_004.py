"""The library use that seed 004 documents, against the demo checkpoint under the name that its examples use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm import LLM, SamplingParams, SparseConfig
from dlm.demo import CHECKPOINT

MODEL = "./LLaDA-8B-Instruct"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model beside it; its context is as long as the examples ask for."""
    folder = tmp_path_factory.mktemp("seed_004")
    shutil.copytree(CHECKPOINT, folder / MODEL)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    (folder / MODEL / "config.json").write_text(json.dumps({**config, "max_sequence_length": 4096}))
    return folder


@pytest.fixture(autouse=True)
def _inside(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


@pytest.fixture(scope="module")
def llm(workplace: Path) -> Iterator[LLM]:
    with LLM(str(workplace / MODEL), enforce_eager=True) as model:
        yield model


def test_constructor() -> None:
    with LLM(MODEL, enforce_eager=True, tensor_parallel_size=1, max_model_len=4096) as llm:
        assert llm.max_model_len == 4096


def test_generate() -> None:
    llm = LLM(MODEL, enforce_eager=True)
    params = SamplingParams(temperature=0.6, gen_length=64, steps=64, cfg_scale=0.0, remasking="low_confidence")
    outputs = llm.generate(["Hello, world!"], params)
    assert len(outputs) == 1
    assert isinstance(outputs[0]["text"], str)
    assert all(isinstance(token, int) for token in outputs[0]["token_ids"])
    assert "error" not in outputs[0]
    llm.close()


def test_generate_takes_token_ids_and_the_documented_names(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, gen_length=32)
    outputs = llm.generate(
        prompts=[[5, 6, 7], [8, 9]], sampling_params=[params, params], sparse_configs=None, use_tqdm=False
    )
    assert [output["usage"]["prompt_tokens"] for output in outputs] == [3, 2]


def test_sampling_params_with_every_documented_parameter(llm: LLM) -> None:
    params = SamplingParams(
        temperature=1.0,
        max_tokens=16,
        ignore_eos=True,
        gen_length=128,
        steps=128,
        cfg_scale=0.0,
        remasking="low_confidence",
    )
    [output] = llm.generate(["Hello, world!"], params)
    assert len(output["token_ids"]) <= 16
    assert "error" not in output


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_both_remasking_strategies(llm: LLM, remasking: str) -> None:
    """`random` orders a schedule, so that it wants an algorithm that has one."""
    params = SamplingParams(gen_length=32, steps=32, temperature=0.0, remasking=remasking, algorithm="basic")
    [output] = llm.generate(["Hello, world!"], params)
    assert "error" not in output


def test_sparse_config() -> None:
    config = SparseConfig(enabled=True, retention_ratio=0.5, delay_step=1, default_block_len=32, head_select=True)
    assert config == SparseConfig()


def test_batch_generation(llm: LLM) -> None:
    prompts = ["Prompt 1", "Prompt 2", "Prompt 3"]
    params = SamplingParams(temperature=0.0, gen_length=32, steps=32, cfg_scale=0.0, remasking="low_confidence")
    outputs = llm.generate(prompts, params)
    alone = [llm.generate([prompt], params)[0] for prompt in prompts]
    assert [output["token_ids"] for output in outputs] == [output["token_ids"] for output in alone]


def test_per_prompt_sampling_parameters(llm: LLM) -> None:
    prompts = ["Prompt 1", "Prompt 2", "Prompt 3"]
    params_list = [
        SamplingParams(temperature=0.0, gen_length=32, steps=32, cfg_scale=0.0, remasking="low_confidence"),
        SamplingParams(temperature=0.6, gen_length=64, steps=64, cfg_scale=0.0, remasking="low_confidence"),
    ]
    assert len(llm.generate(prompts[:2], params_list)) == 2
    with pytest.raises(ValueError, match="2 sampling_params for 3 prompts"):
        llm.generate(prompts, params_list)


def test_sparse_attention(llm: LLM) -> None:
    prompts = ["Prompt 1", "Prompt 2", "Prompt 3"]
    params = SamplingParams(temperature=0.0, gen_length=64, steps=64)
    sparse_config = SparseConfig(enabled=True, retention_ratio=0.5)
    shared = llm.generate(prompts, params, sparse_configs=sparse_config)
    listed = llm.generate(prompts, params, sparse_configs=[sparse_config] * 3)
    assert [output["token_ids"] for output in shared] == [output["token_ids"] for output in listed]
    assert not any("error" in output for output in shared)


def test_invalid_sampling_parameters_are_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"gen_length=10000 must be a whole number, 1\.\.8192"):
        SamplingParams(gen_length=10000)
    with pytest.raises(ValueError, match="steps=0"):
        SamplingParams(steps=0)
    with pytest.raises(ValueError, match="remasking='highest'"):
        SamplingParams(remasking="highest")


@pytest.mark.slow
def test_several_devices_give_what_one_gives(llm: LLM) -> None:
    """The example asks for two GPUs; here two processes share a CPU."""
    prompts, params = ["Prompt 1", "", "Prompt 3"], SamplingParams(temperature=0.0, gen_length=32, steps=32)
    with LLM(MODEL, tensor_parallel_size=2, device="cpu") as shared:
        outputs = shared.generate(prompts, params)
        assert [output["token_ids"] for output in outputs] == [
            output["token_ids"] for output in llm.generate(prompts, params)
        ]
        assert "is empty" in outputs[1]["error"]


def test_a_shorter_context_takes_less_memory() -> None:
    with LLM(MODEL, max_num_seqs=4) as whole, LLM(MODEL, max_num_seqs=4, max_model_len=2048) as half:
        assert half.options.arena_tokens is not None
        assert whole.options.arena_tokens is not None
        assert half.options.arena_tokens * 2 == whole.options.arena_tokens
