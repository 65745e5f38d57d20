"""The front door: what goes in is checked and named, and what comes out has the shape of the contract."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm import LLM, SamplingParams, SparseConfig
from dlm.demo import CHECKPOINT
from dlm.errors import CheckpointError, ConfigError
from tests.front import GREEDY, PROMPTS, WARM, demo_llm, generate
from tests.running import TIMEOUT, environment

__all__ = ["demo_llm"]  # a fixture of this module


# Importing


def test_the_package_and_the_parameters_load_no_torch_and_nothing_loads_lightning() -> None:
    code = (
        "import sys; from dlm import SamplingParams, SparseConfig; SamplingParams(threshold=0.5); SparseConfig();"
        "assert 'torch' not in sys.modules; from dlm import LLM; assert 'torch' in sys.modules;"
        "assert 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), timeout=TIMEOUT)


def test_the_package_has_the_three_names_and_no_others() -> None:
    assert {"LLM", "SamplingParams", "SparseConfig"} <= set(dir(dlm))
    with pytest.raises(AttributeError, match="no attribute 'Sampling'"):
        dlm.Sampling  # noqa: B018  # reading it is the test


# The constructor


def test_the_signature_is_the_contract() -> None:
    parameters = inspect.signature(LLM).parameters
    names = ["model", "revision", "dtype", "device", "tensor_parallel_size", "max_model_len", "max_num_seqs"]
    names += ["max_num_batched_tokens", "gpu_memory_utilization", "enforce_eager", "trust_remote_code"]
    assert list(parameters) == names
    defaults = {name: parameters[name].default for name in names}
    assert defaults["gpu_memory_utilization"] == 0.9
    assert (defaults["dtype"], defaults["device"]) == ("auto", "auto")
    assert not defaults["trust_remote_code"]


def test_an_unknown_keyword_is_named() -> None:
    with pytest.raises(TypeError, match="gpu_memory_utilisation"):
        LLM("demo", gpu_memory_utilisation=0.5)  # type: ignore[call-arg]  # that is the test


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"trust_remote_code": True}, "trust_remote_code=True: code of a checkpoint is never run"),
        ({"enforce_eager": "yes"}, "enforce_eager='yes'"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size=0 must be a whole number, at least 1"),
        ({"tensor_parallel_size": 3}, "tensor_parallel_size=3 does not divide the model's num_heads=4"),
        ({"max_model_len": 1_000_000}, "max_model_len=1000000: the model has 1024 positions"),
        ({"max_num_seqs": 0}, "max_num_seqs=0"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens=0"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization=0 must be a finite number, above 0"),
        (
            {"gpu_memory_utilization": 1.5},
            "gpu_memory_utilization=1.5 must be a finite number, above 0.0 and at most 1",
        ),
        ({"gpu_memory_utilization": 1e-9}, "leaves 0 MiB besides the weights, but one canvas of max_model_len=1024"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
        ({"device": "cpu:0", "tensor_parallel_size": 2}, "device='cpu:0' names one device"),
        ({"max_num_seqs": None}, "max_num_seqs=None"),
        ({"device": "toaster"}, "device='toaster' is no device"),
        ({"device": "meta"}, "models run on cpu and cuda"),
        ({"dtype": "int8"}, "dtype=int8: choose one of auto, float32"),
        ({"revision": "main"}, "revision=main: demo is a local folder; set revision=null"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LLM("demo", **{"device": "cpu", **arguments})
    assert said in str(raised.value)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model=./nowhere: no such folder"):
        LLM("./nowhere")
    with pytest.raises(ConfigError, match="revision: someone/model is a hub id; set a commit"):
        LLM("someone/model")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        LLM(tmp_path)


def test_a_folder_is_the_demo_when_it_holds_it(llm: LLM, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "copy"))
    with LLM(folder, device="cpu", dtype="float32") as copied:
        assert generate(copied, PROMPTS, GREEDY) == generate(llm, PROMPTS, GREEDY)


# Prompts in, items out


def test_an_item_has_what_the_contract_names(llm: LLM) -> None:
    [item] = llm.generate(PROMPTS[0], GREEDY)
    assert item["text"] == llm.tokenizer.decode(item["token_ids"], skip_special_tokens=True)
    assert item["finish_reason"] in ("stop", "length")
    assert len(item["step_map"]) == len(item["token_ids"])
    assert all(1 <= step <= item["nfe"] for step in item["step_map"])
    assert item["seconds"] > 0
    assert item["seed"] == 1
    prompt, completion = len(item["prompt_token_ids"]), len(item["token_ids"])
    assert item["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    assert "error" not in item
    assert "logprobs" not in item


def test_texts_and_token_ids_mix_and_come_back_in_order(llm: LLM) -> None:
    ids = [list(llm.codec.encode(prompt)) for prompt in PROMPTS]
    texts = generate(llm, PROMPTS, GREEDY)
    assert generate(llm, ids, GREEDY) == texts
    assert generate(llm, [PROMPTS[0], ids[1], *PROMPTS[2:]], GREEDY) == texts
    assert generate(llm, ids[2], GREEDY) == texts[2:3]
    assert [item["prompt_token_ids"] for item in texts] == ids
    assert generate(llm, [], GREEDY) == []


def test_masks_in_a_prompt_are_filled_in(llm: LLM) -> None:
    mask = llm.config.special.mask_id
    ids = list(llm.codec.encode(PROMPTS[0]))
    ids[5] = mask
    [item] = generate(llm, ids, GREEDY)
    assert mask not in item["prompt_token_ids"]
    assert item["prompt_token_ids"][:5] == ids[:5]


def test_each_prompt_has_parameters_of_its_own(llm: LLM) -> None:
    params = [
        GREEDY,
        WARM,
        SamplingParams(gen_length=16, algorithm="basic", steps=16, temperature=0.0, seed=2),
        SamplingParams(gen_length=48, algorithm="dual", factor=1.0, seed=3),
        SamplingParams(gen_length=32, algorithm="hierarchy", low_threshold=0.3, temperature=0.0, seed=4),
    ]
    together = generate(llm, PROMPTS, params)
    assert together == [generate(llm, prompt, one)[0] for prompt, one in zip(PROMPTS, params, strict=True)]


def test_a_bad_prompt_costs_itself_alone(llm: LLM) -> None:
    good = generate(llm, PROMPTS[:2], WARM)
    bad = ["", [], [5, 1024], [5, 2**80], [-1], [5] * 2000]
    said = ["is empty", "is empty", "prompt token 1024 is outside the vocabulary 0..1023", str(2**80), "token -1"]
    bad.insert(5, "a\ud800")
    said.append("half of a surrogate pair (U+D800)")
    said.append("prompt of 2000 tokens and gen_length=32 make 2032 positions, max_model_len is 1024")
    items = generate(llm, [PROMPTS[0], *bad, PROMPTS[1]], WARM)
    assert [items[0], items[-1]] == good
    for item, part in zip(items[1:-1], said, strict=True):
        assert part in item["error"]
        assert (item["text"], item["token_ids"], item["finish_reason"]) == ("", [], "error")


def test_what_the_model_cannot_run_costs_its_prompt_alone(llm: LLM) -> None:
    params = [
        SamplingParams(algorithm="dream"),
        GREEDY,
        SamplingParams(algorithm="basic", gamma=0.5),
        SamplingParams(remasking="random", algorithm="dinfer_blockwise"),
        SamplingParams(algorithm="basic", steps=1),
    ]
    items = generate(llm, PROMPTS, params)
    assert items[1] == generate(llm, PROMPTS[1], GREEDY)[0]
    said = ["cannot run on a llada model; it runs basic", "", "gamma", "remasking", "steps=1"]
    for item, part in zip(items, said, strict=True):
        assert part in item.get("error", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((3,), "prompts must be a list of texts or of token ids, not int"),
        ((b"bytes",), "not bytes"),
        (([b"bytes"],), r"prompts\[0\]"),
        ((["a", 3],), r"prompts\[1\]"),
        (([[1.5]],), r"prompts\[0\]"),
        (([True],), r"prompts\[0\]"),
        (("a", {"steps": 3}), "sampling_params must be one dlm.SamplingParams"),
        ((["a"], [None]), r"sampling_params\[0\] must be a dlm.SamplingParams"),
        (("a", None, 0.5), "sparse_configs must be one dlm.SparseConfig"),
    ],
)
def test_what_is_no_prompt_or_parameter_at_all_is_a_type_error(llm: LLM, arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        llm.generate(*arguments)


def test_lists_of_different_lengths_are_refused_with_both(llm: LLM) -> None:
    with pytest.raises(ValueError, match="2 sampling_params for 3 prompts"):
        llm.generate(PROMPTS[:3], [GREEDY, GREEDY])
    with pytest.raises(ValueError, match="1 sparse_configs for 3 prompts"):
        llm.generate(PROMPTS[:3], GREEDY, [SparseConfig()])


def test_a_text_that_cannot_fit_is_not_tokenized(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = llm.codec.encode
    monkeypatch.setattr(llm.codec, "encode", lambda text: encode(text) if len(text) < 100 else pytest.fail("tokenized"))
    huge, good = llm.generate(["ten megabytes " * 750_000, "Sort 3 1."], GREEDY, use_tqdm=False)
    assert "the prompt has 10500000 characters, more than the 1024 tokens of this model can hold" in huge["error"]
    assert "error" not in good
