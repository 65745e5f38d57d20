"""What `LLM.generate` gives depends on the prompt alone; it can be limited, interrupted, closed and used again."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

from dlm import LLM, SamplingParams, SparseConfig
from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import Sparse
from dlm.decoding.samplers import DInferThreshold
from dlm.decoding.tensor_parallel.decoder import ParallelDecoder
from dlm.demo import CHECKPOINT
from dlm.errors import RequestError, RunError
from tests.front import BABBLE, GREEDY, PROMPTS, WARM, demo_llm, generate, requests_of
from tests.running import race

__all__ = ["demo_llm"]  # a fixture of this module


# Seeds and batches


@pytest.mark.parametrize("algorithm", ["auto", "basic", "prefix_cache", "dinfer_vicinity", "credit", "sparse"])
def test_an_answer_does_not_depend_on_the_batch(llm: LLM, algorithm: str) -> None:
    params = [SamplingParams(gen_length=32, temperature=1.5, algorithm=algorithm, seed=n) for n in range(len(PROMPTS))]
    alone = [generate(llm, prompt, one)[0] for prompt, one in zip(PROMPTS, params, strict=True)]
    assert generate(llm, PROMPTS, params) == alone
    assert generate(llm, PROMPTS[::-1], params[::-1]) == alone[::-1]


def test_equal_seeds_give_equal_text_and_others_another(llm: LLM) -> None:
    seeds = [0, 1, 2, 3, 0, 1, 2, 3]
    items = generate(llm, [PROMPTS[0]] * 8, [SamplingParams(**BABBLE, seed=seed) for seed in seeds])
    assert items[:4] == items[4:]
    assert len({tuple(item["token_ids"]) for item in items}) > 1


def test_without_a_seed_one_is_drawn_and_told(llm: LLM) -> None:
    items = generate(llm, [PROMPTS[0]] * 8, SamplingParams(**BABBLE))
    assert len({item["seed"] for item in items}) == 8
    assert len({tuple(item["token_ids"]) for item in items}) > 1
    again = [SamplingParams(**BABBLE, seed=item["seed"]) for item in items]
    assert generate(llm, [PROMPTS[0]] * 8, again) == items


def test_samples_of_a_prompt_stand_in_its_item(llm: LLM) -> None:
    one, several = SamplingParams(**BABBLE, seed=7), SamplingParams(**BABBLE, seed=7, n=6)
    before, item, after = generate(llm, PROMPTS[:3], [one, several, one])
    assert [sample["sample"] for sample in item["outputs"]] == [0, 1, 2, 3, 4, 5]
    assert len({tuple(sample["token_ids"]) for sample in item["outputs"]}) > 1
    assert item["token_ids"] == item["outputs"][0]["token_ids"]
    assert item["usage"]["completion_tokens"] == sum(len(sample["token_ids"]) for sample in item["outputs"])
    assert len(before["outputs"]) == len(after["outputs"]) == 1
    assert generate(llm, PROMPTS[1], one)[0]["token_ids"] == item["token_ids"]


# Where an answer ends


@pytest.fixture(scope="module")
def babble(llm: LLM) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters with a seed whose answer is long, and that answer."""
    for seed in range(50):
        values = {**BABBLE, "seed": seed}
        [item] = generate(llm, PROMPTS[0], SamplingParams(**values))
        if len(item["token_ids"]) >= 24 and len(item["text"]) >= 48:
            return values, item
    raise AssertionError("no seed gives a long answer")


def test_an_answer_ends_before_a_stop_string(llm: LLM, babble: tuple[dict[str, Any], dict[str, Any]]) -> None:
    values, whole = babble
    stop = whole["text"][20:24]
    params = SamplingParams(**values, stop=stop)
    assert params.stop == (stop,)
    [item] = generate(llm, PROMPTS[0], params)
    assert item["text"] == whole["text"][: whole["text"].index(stop)]
    assert item["finish_reason"] == "stop"
    count = len(item["token_ids"])
    assert 0 < count < len(whole["token_ids"])
    assert item["token_ids"] == whole["token_ids"][:count]
    decode = llm.codec.decode
    assert decode(item["token_ids"]).startswith(item["text"])
    assert not decode(item["token_ids"][:-1]).startswith(item["text"])
    assert item["usage"]["completion_tokens"] == count == len(item["step_map"])


def test_a_stop_string_within_max_tokens_is_why_it_ends(
    llm: LLM, babble: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """The block goes on behind both; the string comes first."""
    values, whole = babble
    cut = generate(llm, PROMPTS[0], SamplingParams(**values, max_tokens=20))[0]
    assert (cut["finish_reason"], cut["token_ids"]) == ("length", whole["token_ids"][:20])
    stop = cut["text"][4:8]
    assert generate(llm, PROMPTS[0], SamplingParams(**values, max_tokens=20, stop=stop))[0]["finish_reason"] == "stop"


def test_recorded_log_probabilities_follow_the_tokens(llm: LLM) -> None:
    plain = generate(llm, PROMPTS[0], WARM)[0]
    recorded = generate(llm, PROMPTS[0], SamplingParams(gen_length=32, temperature=1.5, seed=7, record=True))[0]
    assert len(recorded["logprobs"]) == len(recorded["token_ids"])
    assert all(value <= 0 for value in recorded.pop("logprobs"))
    recorded["outputs"][0].pop("logprobs")
    assert recorded == plain


# Sparse attention


def test_a_disabled_sparse_config_is_the_dense_path(llm: LLM) -> None:
    assert generate(llm, PROMPTS, WARM, SparseConfig(enabled=False, default_block_len=8)) == generate(
        llm, PROMPTS, WARM
    )


def test_a_sparse_config_takes_the_engines_place_and_leaves_the_sampler(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = requests_of(monkeypatch)
    config = SparseConfig(retention_ratio=0.25, delay_step=0, default_block_len=16, head_select=False)
    named = SamplingParams(gen_length=32, block_length=32, threshold=0.7, algorithm="dual_cache")
    mixed = generate(llm, PROMPTS[:3], [GREEDY, GREEDY, named], [config, None, config])
    assert [request.engine for request in seen][::2] == [Sparse(0.25, 0, head_select=False)] * 2
    assert seen[0].sampler == DInferThreshold()
    assert seen[2].sampler.threshold == 0.7
    assert [request.params.block_length for request in seen] == [16, 32, 32]
    assert mixed[0] == generate(llm, PROMPTS[0], GREEDY, config)[0]
    assert mixed[1] == generate(llm, PROMPTS[1], GREEDY)[0]


def test_what_goes_against_a_sparse_config_is_refused(llm: LLM) -> None:
    params = [
        SamplingParams(algorithm="sparse", kernel_size=5),
        SamplingParams(algorithm="dinfer_vicinity"),
        SamplingParams(algorithm="sparse"),
    ]
    items = generate(llm, PROMPTS[:3], params, [SparseConfig(), SparseConfig(), SparseConfig(enabled=False)])
    said = [
        "kernel_size: a sparse config takes the engine's place",
        "has an engine of its own, vicinity",
        "goes against",
    ]
    for item, part in zip(items, said, strict=True):
        assert part in item["error"]


def test_a_family_without_sparse_attention_refuses_it() -> None:
    from dlm.models.families import DREAM

    with pytest.raises(RequestError, match="family dream cannot attend sparsely"):
        GREEDY.translate(DREAM, "bidirectional", None, SparseConfig())


# Limits


def test_more_prompts_than_the_memory_holds_wait(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, params = PROMPTS * 3, [SamplingParams(gen_length=32, temperature=1.5, seed=n) for n in range(15)]
    monkeypatch.setattr("dlm.llm.budget", lambda *arguments: 30 << 20)
    with LLM("demo", device="cpu", max_model_len=128, max_num_seqs=16, max_num_batched_tokens=64) as small:
        assert small.options.arena_tokens is not None
        assert 128 <= small.options.arena_tokens < 15 * 44
        most, step = [0], Decoder.step  # the fifteen prompts need more slots than there are

        def counted(self: Decoder) -> Any:
            done = step(self)
            most[0] = max(most[0], self.arena.ranges.num_taken)
            return done

        expected = generate(llm, prompts, params)
        monkeypatch.setattr(Decoder, "step", counted)
        assert generate(small, prompts, params) == expected
        assert 0 < most[0] <= small.options.arena_tokens
        assert small._decoder is not None
        assert small._decoder.arena.ranges.num_taken == 0


def test_max_model_len_holds_for_each_prompt() -> None:
    with LLM("demo", device="cpu", max_model_len=64) as short:
        fits, not_fits = generate(short, [[5] * 32, [5] * 33], GREEDY)
        assert "error" not in fits
        assert "make 65 positions, max_model_len is 64" in not_fits["error"]


# Interrupting and closing


def test_after_an_interrupt_it_can_be_used_again(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(llm, PROMPTS, WARM)
    steps, forward = [0], Decoder._forward

    def interrupted(self: Decoder, batch: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:
            raise KeyboardInterrupt
        return forward(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "_forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(llm, PROMPTS, WARM)
    assert steps == [3]
    assert generate(llm, PROMPTS, WARM) == expected


@pytest.mark.slow
def test_after_an_interrupt_several_processes_are_started_anew(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(llm, PROMPTS, GREEDY)

    def interrupted(self: Decoder, batch: Any) -> Any:
        raise KeyboardInterrupt

    with LLM("demo", device="cpu", tensor_parallel_size=2) as shared:
        first = shared._decoder
        with monkeypatch.context() as patched:
            patched.setattr(Decoder, "_forward", interrupted)
            with pytest.raises(KeyboardInterrupt):
                generate(shared, PROMPTS, GREEDY)
        assert [item["token_ids"] for item in generate(shared, PROMPTS, GREEDY)] == [
            item["token_ids"] for item in expected
        ]
        second = shared._decoder
    for decoder in (first, second):
        assert isinstance(decoder, ParallelDecoder)
        assert decoder._workers is not None
        assert all(process.poll() is not None for process in decoder._workers.processes)


def test_closing_frees_the_weights_and_may_be_repeated() -> None:
    llm = LLM("demo", device="cpu")
    generate(llm, PROMPTS[0], GREEDY)
    assert llm._checkpoint is not None
    weights = weakref.ref(llm._checkpoint.backbone)
    llm.close()
    llm.close()
    gc.collect()
    assert weights() is None
    with pytest.raises(RunError, match="this LLM is closed; make a new one"):
        llm.generate("Hi")


def test_the_context_closes_it_also_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), LLM("demo", device="cpu") as llm:
        raise ZeroDivisionError
    with pytest.raises(RunError, match="closed"):
        llm.generate("Hi")


def test_calls_from_several_threads_take_turns(llm: LLM) -> None:
    params = [SamplingParams(gen_length=32, temperature=1.5, seed=n) for n in range(4)]
    expected = [generate(llm, PROMPTS, one) for one in params]
    found: dict[int, Any] = {}
    race(lambda n: found.update({n: generate(llm, PROMPTS, params[n])}), runners=4)
    assert [found[n] for n in range(4)] == expected


def test_the_progress_bar_counts_prompts_refused_ones_too(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate([*PROMPTS, ""], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""
    llm.generate([*PROMPTS, ""], GREEDY)
    assert "6/6" in capsys.readouterr().err


# A model trained on blocks


def test_a_block_causal_model_is_asked_for_its_own_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).parent / "goldens" / "sdar_eos"
    folder = tmp_path / "sdar"
    shutil.copytree(golden, folder)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(CHECKPOINT / name, folder)
    tokenizer = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < config["vocab_size"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    seen = requests_of(monkeypatch)
    with LLM(folder, device="cpu") as llm:
        size = llm.config.backbone.block_length
        items = generate(llm, [[3, 4, 5], [3, 4, 5]], [GREEDY, SamplingParams(gen_length=8, block_length=8)])
        assert [request.params.block_length for request in seen] == [size, 8]
        assert not any("error" in item for item in items)
        refused = generate(llm, [[3, 4, 5]], GREEDY, SparseConfig())[0]
        assert "family sdar cannot attend sparsely" in refused["error"]
