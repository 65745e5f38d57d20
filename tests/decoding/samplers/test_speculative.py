"""`ar` is plain causal decoding, and `linear_spec` gives the same tokens, whatever drafts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from dlm.decoding.cuda import graphs
from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import Autoregressive, CausalCommit, Engine
from dlm.decoding.engines import LinearSpec as LinearSpecEngine
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Leftmost, LinearSpec, Sampler, Threshold
from dlm.models.attention import NaiveAttention, VarlenAttention, kernels
from dlm.models.attention.segments import Segment
from dlm.models.families import NEMOTRON
from dlm.models.io.loading import Checkpoint, load_checkpoint, random_checkpoint, save_checkpoint
from tests.decoding.cuda.test_graphs import Repeating
from tests.decoding.drawing import facts
from tests.models.attention.stand_in_kernel import KernelByDefinition
from tests.models.lora.test_drafter import PUBLISHED, TARGETS, write_drafter

GEN = 21


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    """A tiny Nemotron whose drafts are right now and then: heads that look at their own row mostly."""
    model = random_checkpoint("tiny_nemotron", seed=3, dtype="float64")
    with torch.no_grad():
        model.backbone.lm_head.weight.mul_(8)
    return model


def decode(model: Checkpoint, prompt: tuple[int, ...], engine: Engine, sampler: Sampler, block: int) -> Completion:
    params = SamplingParams(gen_length=GEN, block_length=block, temperature=0.0, ignore_eos=True)
    decoder = Decoder(model.backbone, model.special, DecoderOptions(max_num_seqs=1, arena_tokens=64, poison=True))
    return next(decoder.run([Request("a", prompt, params, engine, sampler)]))


def greedy(model: Checkpoint, prompt: tuple[int, ...]) -> list[int]:
    """One causal forward over everything for each token."""
    config, tokens = model.backbone.config, list(prompt)
    for _ in range(GEN):
        count = len(tokens)
        shape = (2, config.num_layers, count, config.num_kv_heads, config.head_dim)
        with torch.inference_mode():
            arena = torch.zeros(shape, dtype=torch.float64)
            attention = NaiveAttention([Segment(0, count, 0, 0, count, causal=True)], *arena)
            hidden = model.backbone(torch.tensor(tokens), torch.arange(count), attention)
            logits = model.backbone.head(hidden)[-1]
            logits[model.special.mask_id] = -torch.inf
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("block", [1, 2, 7, 32])
@pytest.mark.parametrize("seed", range(3))
def test_both_equal_plain_causal_decoding(model: Checkpoint, seed: int, block: int) -> None:
    prompt = tuple(random.Random(seed).randrange(500) for _ in range(1 + 4 * seed))
    expected = greedy(model, prompt)
    plain = decode(model, prompt, Autoregressive(), Leftmost(), block)
    drafted = decode(model, prompt, LinearSpecEngine(), LinearSpec(), block)
    assert list(plain.canvas_ids) == expected
    assert list(drafted.canvas_ids) == expected
    assert plain.nfe == GEN
    assert plain.positions == len(prompt) + GEN - 1


def test_drafts_that_are_right_save_forwards() -> None:
    """A model that says the same token everywhere drafts what it then verifies."""
    model = random_checkpoint("tiny_nemotron", seed=3, dtype="float64")
    with torch.no_grad():
        model.backbone.lm_head.weight.zero_()
    prompt = (5, 6, 7)
    drafted = decode(model, prompt, LinearSpecEngine(), LinearSpec(), 8)
    assert set(drafted.canvas_ids) == {0}
    # The prompt gives one token; then each draft and its check give eight, and the last pair what is left.
    assert drafted.nfe == 1 + 2 * 3


def test_it_ends_with_the_answer(model: Checkpoint) -> None:
    prompt = (1, 2, 3)
    expected = greedy(model, prompt)
    special = type(model.special)(model.special.mask_id, expected[4])
    params = SamplingParams(gen_length=GEN, block_length=7, temperature=0.0)
    decoder = Decoder(model.backbone, special, DecoderOptions(max_num_seqs=1, arena_tokens=64))
    request = Request("a", prompt, params, LinearSpecEngine(), LinearSpec())
    done = next(decoder.run([request]))
    end = expected.index(expected[4])
    assert (list(done.token_ids), done.finish_reason) == (expected[:end], "stop")
    assert model.special.mask_id in done.canvas_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Nemotron of few words, so that drafts are right now and then, and random adapters for its drafts."""
    folder = tmp_path_factory.mktemp("nemotron")
    model = random_checkpoint("tiny_nemotron", seed=3)
    with torch.no_grad():
        model.backbone.lm_head.weight[4:] = 0
    save_checkpoint(model.backbone, model.special, folder, family=NEMOTRON)
    write_drafter(folder / "published", PUBLISHED, rank=8, strength=3.0)
    write_drafter(folder / "all", *TARGETS, strength=3.0)
    return folder


def asked(seed: int, engine: Engine, sampler: Sampler, block: int = 7) -> Request:
    chance = random.Random(seed)
    prompt = tuple(chance.randrange(500) for _ in range(chance.randint(1, 30)))
    params = SamplingParams(gen_length=48, block_length=block, temperature=0.0, ignore_eos=True, seed=seed)
    return Request(str(seed), prompt, params, engine, sampler)


def answers(model: Checkpoint, requests: list[Request], seqs: int = 4) -> dict[str, Completion]:
    options = DecoderOptions(max_num_seqs=seqs, arena_tokens=600, poison=True)
    return {one.request_id: one for one in Decoder(model.backbone, model.special, options).run(requests)}


@pytest.mark.parametrize("adapter", ["published", "all"])
def test_a_drafters_adapter_changes_how_many_forwards_and_no_token(folder: Path, adapter: str) -> None:
    """A random one spoils some drafts and mends others."""
    model = load_checkpoint(folder)
    drafting = load_checkpoint(folder, drafter=folder / adapter)
    plain = answers(model, [asked(seed, Autoregressive(), Leftmost(), 1) for seed in range(8)])
    requests = [asked(seed, LinearSpecEngine(), LinearSpec()) for seed in range(8)]
    without, given = answers(model, requests), answers(drafting, requests)
    for name, one in plain.items():
        assert one.canvas_ids == without[name].canvas_ids == given[name].canvas_ids
    tokens = sum(len(one.token_ids) for one in plain.values())
    forwards = [sum(one.nfe for one in each.values()) for each in (plain, without, given)]
    print(f"{adapter}: {tokens} tokens in {forwards} forwards (ar, drafts, with an adapter)")
    assert forwards[1] != forwards[2]
    assert [without[name].nfe for name in plain] != [given[name].nfe for name in plain]


def test_other_algorithms_do_not_see_the_adapter(folder: Path) -> None:
    model, drafting = load_checkpoint(folder), load_checkpoint(folder, drafter=folder / "all")
    parts: list[tuple[Engine, Sampler]] = [(Autoregressive(), Leftmost()), (CausalCommit(), Threshold(0.3))]
    requests = [asked(seed, *parts[seed % 2]) for seed in range(6)]
    theirs = answers(model, requests)
    assert {name: facts(one) for name, one in answers(drafting, requests).items()} == {
        name: facts(one) for name, one in theirs.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_drafts_do_not_depend_on_what_they_are_batched_with(folder: Path, dtype: str) -> None:
    """Drafts, verifying passes, prompts and other algorithms' blocks in one batch: each as alone, forwards too."""
    drafting = load_checkpoint(folder, drafter=folder / "all", dtype=dtype)
    parts: list[tuple[Engine, Sampler]] = [(LinearSpecEngine(), LinearSpec()), (CausalCommit(), Threshold(0.3))]
    requests = [asked(seed, *parts[seed % 3 == 2], block=3 + seed % 5) for seed in range(12)]
    alone = {name: facts(one) for each in requests for name, one in answers(drafting, [each], 1).items()}
    mixed = answers(drafting, requests, 7)
    assert {name: facts(one) for name, one in mixed.items()} == alone


def test_drafts_are_recorded_with_the_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of other algorithms are played beside drafts, and alone."""
    monkeypatch.setattr(graphs, "PATIENCE", 1)
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: KernelByDefinition())
    drafting = load_checkpoint(folder, drafter=folder / "all")
    parts: list[tuple[Engine, Sampler]] = [(LinearSpecEngine(), LinearSpec()), (CausalCommit(), Threshold(0.3))]
    requests = [asked(seed, *parts[seed // 4]) for seed in range(8)]
    results, shapes = [], set()
    for enforce_eager in (False, True):
        options = DecoderOptions(max_num_seqs=2, arena_tokens=600, poison=True, enforce_eager=enforce_eager)
        decoder = Decoder(drafting.backbone, drafting.special, options, backend=VarlenAttention, recorder=Repeating())
        results.append({one.request_id: facts(one) for one in decoder.run(requests)})
        shapes |= {shape.drafts for shape in decoder.graphs._recordings}
    assert results[0] == results[1]
    assert shapes == {False, True}
