"""Steps that reuse the cache are recorded and played again: the same answers, captures counted, none when not wanted.

A stand-in recorder plays by doing the same work once more on the same buffers, which is what a CUDA graph does, and a
kernel in plain torch takes the place of the flash kernel; `tests/gpu` has the real ones.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dlm.decoding.cuda import graphs
from dlm.decoding.cuda.graphs import Play, choose_recorder
from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import BlockCausal, DualCache, Full, PrefixCache, Smooth, Sparse, Vicinity
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Fixed, LLaDA2, Threshold
from dlm.llm import LLM
from dlm.models.attention import SdpaAttention, SeparateAttention, VarlenAttention, kernels
from dlm.models.backbone import Backbone
from dlm.models.io.loading import Checkpoint
from tests.decoding.drawing import draw_request, facts
from tests.decoding.worlds import BY_NAME, tiny_model
from tests.models.attention.stand_in_kernel import KernelByDefinition
from tests.vectors import Unsupported, cases, checkpoint, compare, recipe, requests, special_tokens

LIMITS: dict[str, Any] = {"max_num_seqs": 8, "arena_tokens": 1000, "poison": True}


class Repeating:
    """A recorder that plays work by doing it again."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, work: Play) -> Play:
        self.recorded += 1
        work()
        return work


class Failing:
    """A recorder on a device that cannot record."""

    def record(self, work: Play) -> Play:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")


BOTH_KERNELS = pytest.mark.parametrize("kernel", [False, True], ids=["gathering", "in_place"], indirect=True)


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> KernelByDefinition:
    made = KernelByDefinition(takes_used=getattr(request, "param", True))
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: made)
    return made


@pytest.fixture
def eager_to_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PATIENCE", 1)


def decoder_of(model: Checkpoint, recorder: graphs.Recorder | None = None, **options: Any) -> Decoder:
    given = DecoderOptions(**{**LIMITS, **options})
    return Decoder(model.backbone, model.special, given, backend=VarlenAttention, recorder=recorder)


def asked(count: int = 10, engine: Any = None, sampler: Any = None, length: int = 32) -> list[Request]:
    chance, made = random.Random(count), []
    for index in range(count):
        prompt = tuple(chance.randrange(500) for _ in range(chance.randint(3, 40)))
        params = SamplingParams(
            length, block_length=8, steps=length, record=True, ignore_eos=True, seed=index, temperature=0.0
        )
        made.append(Request(str(index), prompt, params, engine or DualCache(), sampler or Threshold(0.9)))
    return made


def answers(decoder: Decoder, wanted: list[Request]) -> dict[tuple[str, int], tuple[object, ...]]:
    return {(one.request_id, one.sample): facts(one) for one in decoder.run(wanted)}


@pytest.mark.usefixtures("kernel")
def test_enforce_eager_captures_nothing_and_without_it_captures_are_counted() -> None:
    """The same answers, bit for bit."""
    counts: dict[bool, tuple[int, int]] = {}
    results = []
    for enforce_eager in (False, True):
        recorder = Repeating()
        decoder = decoder_of(tiny_model(), recorder, enforce_eager=enforce_eager)
        results.append(answers(decoder, asked(sampler=Fixed())))
        counts[enforce_eager] = decoder.graphs.captures, decoder.graphs.replays
        assert recorder.recorded == decoder.graphs.captures
        print(f"enforce_eager={enforce_eager}: {decoder.graphs.captures} captures, {decoder.graphs.replays} replays")
    assert results[0] == results[1]
    assert counts[True] == (0, 0)
    assert counts[False][0] >= 1
    assert counts[False][1] > 2 * counts[False][0]


def test_enforce_eager_of_llm_reaches_the_decoder() -> None:
    for wanted in (False, True):
        with LLM("demo", device="cpu", enforce_eager=wanted, max_num_seqs=2, max_model_len=128) as llm:
            assert llm.options.enforce_eager is wanted


@pytest.mark.usefixtures("kernel", "eager_to_record")
@BOTH_KERNELS
@pytest.mark.parametrize("folder", ["llada_eos", "llada2_moe_eos"])
def test_golden_vectors_through_recorded_forwards(folder: str) -> None:
    """Every vector whose algorithm reuses a cache, in one decoder, so that shapes come again."""
    model = checkpoint(folder)
    assert isinstance(model, Checkpoint)
    decoders: dict[object, Decoder] = {}
    done = 0
    for case in cases(folder):
        chosen = recipe(case)
        if isinstance(chosen, Unsupported) or isinstance(chosen[0], Full | Smooth):
            continue
        special = special_tokens(case)
        if special not in decoders:
            options = DecoderOptions(max_num_seqs=4, arena_tokens=1024, poison=True)
            decoders[special] = Decoder(model.backbone, special, options, backend=VarlenAttention, recorder=Repeating())
        compare(case, {one.request_id: one for one in decoders[special].run(requests(case))})
        done += 1
    assert done >= 8
    assert sum(decoder.graphs.replays for decoder in decoders.values()) > 5 * done


@pytest.mark.usefixtures("kernel", "eager_to_record")
@BOTH_KERNELS
@pytest.mark.parametrize("name", ["golden", "odd", "moe", "llada2", "dream", "nemotron"])
def test_random_mixes_have_the_bits_of_the_eager_path(name: str) -> None:
    """Requests of any engine and sampler; the steps between which recorded ones lie are of every other kind."""
    world, replays = BY_NAME[name], 0
    for seed in range(2):
        chance = random.Random(f"{name} {seed}")
        drawn = [draw_request(chance, f"r{index}", world.checkpoint()) for index in range(14)]
        mix = drawn[:2] + [one for one in drawn[2:] if not isinstance(one.engine, Full | Smooth)]
        recorded = decoder_of(world.checkpoint(), Repeating(), max_num_seqs=3)
        eager = decoder_of(world.checkpoint(), Repeating(), max_num_seqs=3, enforce_eager=True)
        assert answers(recorded, mix) == answers(eager, mix)
        assert eager.graphs.replays == 0
        replays += recorded.graphs.replays
    assert replays >= 5


@pytest.mark.usefixtures("eager_to_record")
def test_recorded_forwards_agree_with_the_default_backend(kernel: KernelByDefinition) -> None:
    """Tokens and steps equal those of SDPA in float64; log-probabilities to rounding."""
    model = tiny_model("float64")
    plain = Decoder(model.backbone, model.special, DecoderOptions(**LIMITS), backend=SdpaAttention)
    recorded = decoder_of(model, Repeating())
    for engine in (DualCache(), PrefixCache(), Vicinity(), Sparse()):
        theirs = {one.request_id: one for one in plain.run(asked(4, engine=engine))}
        for mine in recorded.run(asked(4, engine=engine)):
            other = theirs[mine.request_id]
            assert (mine.token_ids, mine.step_map, mine.nfe) == (other.token_ids, other.step_map, other.nfe)
            assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-9)
    assert recorded.graphs.replays > 20
    assert kernel.calls


@pytest.mark.usefixtures("kernel", "eager_to_record")
def test_what_is_recorded_attends_to_the_arena() -> None:
    """Canvases without a cache and smoothed inputs go their ordinary way; a refresh reads what it has just kept."""
    for engine in (Full(), Smooth(DualCache())):
        decoder = decoder_of(tiny_model(), Repeating())
        answers(decoder, asked(3, engine=engine))
        assert decoder.graphs.captures == 0
    decoder = decoder_of(tiny_model(), Repeating())
    answers(decoder, asked(1, sampler=Fixed()))
    assert decoder.graphs.replays == decoder.stats.num_steps == 32


@pytest.mark.usefixtures("kernel", "eager_to_record")
def test_block_causal_steps_with_a_commit_are_recorded() -> None:
    model = BY_NAME["llada2"].checkpoint()
    results = []
    for enforce_eager in (False, True):
        decoder = decoder_of(model, Repeating(), enforce_eager=enforce_eager)
        wanted = [
            replace(one, prompt_ids=tuple(token % 300 for token in one.prompt_ids))
            for one in asked(6, engine=BlockCausal(), sampler=LLaDA2(0.9))
        ]
        results.append(answers(decoder, wanted))
    assert results[0] == results[1]


@pytest.mark.usefixtures("kernel", "eager_to_record")
def test_more_rows_than_the_bound_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_ROWS", 16)
    decoder = decoder_of(tiny_model(), Repeating())
    answers(decoder, asked(1, sampler=Fixed()))
    rows = {shape.rows for shape in decoder.graphs._recordings}
    assert rows == {16}


@pytest.mark.usefixtures("eager_to_record")
@BOTH_KERNELS
def test_more_gathered_keys_than_the_arena_has_are_not_recorded(kernel: KernelByDefinition) -> None:
    """Each block of a prompt gathers all before it; kernels that read keys in place gather none."""
    decoder = decoder_of(BY_NAME["llada2"].checkpoint(), Repeating(), arena_tokens=100)
    params = SamplingParams(8, block_length=8, temperature=0.0)
    decoder.add(Request("a", tuple(range(1, 65)), params, BlockCausal(), LLaDA2(0.9)))
    decoder.step()
    assert decoder.graphs.captures == kernel.takes_used


@pytest.mark.usefixtures("kernel")
def test_a_shape_is_recorded_when_it_comes_again_and_again() -> None:
    decoder = decoder_of(tiny_model(), Repeating())
    first, *_ = asked(sampler=Fixed(), length=8)  # a refresh, then seven steps of one shape
    answers(decoder, [first])
    assert decoder.stats.num_steps == 8
    assert (decoder.graphs.captures, decoder.graphs.replays) == (1, 7 - (graphs.PATIENCE - 1))


@pytest.mark.usefixtures("kernel", "eager_to_record")
def test_the_least_used_recording_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(decoder_of(tiny_model()), asked(10))
    monkeypatch.setattr(graphs, "MAX_RECORDINGS", 2)
    decoder = decoder_of(tiny_model(), Repeating(), max_num_seqs=10)
    assert answers(decoder, asked(10)) == expected
    assert len(decoder.graphs._recordings) == 2
    assert decoder.graphs.captures > 2


@pytest.mark.usefixtures("kernel", "eager_to_record")
def test_a_failed_recording_is_told_once_and_changes_no_answer() -> None:
    expected = answers(decoder_of(tiny_model()), asked(6))
    decoder = decoder_of(tiny_model(), Failing())
    with pytest.warns(RuntimeWarning, match="operation not permitted when stream is capturing") as told:
        assert answers(decoder, asked(6)) == expected
    assert len(told) == 1
    assert "enforce_eager" in str(told[0].message)
    assert (decoder.graphs.captures, decoder.graphs.replays) == (0, 0)


@pytest.mark.usefixtures("kernel", "eager_to_record")
def test_new_weights_are_used_written_or_replaced() -> None:
    """A recording reads the memory that it was made with."""
    for replaced in (False, True):
        model = replace(tiny_model(), backbone=copy_of(tiny_model().backbone))
        decoder = decoder_of(model, Repeating())
        answers(decoder, asked(4, sampler=Fixed()))
        captures = decoder.graphs.captures
        with torch.no_grad():
            for module in model.backbone.modules():
                if isinstance(module, nn.Linear):
                    if replaced:
                        module.weight = nn.Parameter(module.weight.flip(0).clone(), requires_grad=False)
                    else:
                        module.weight.copy_(module.weight.flip(0))
        assert answers(decoder, asked(4, sampler=Fixed())) == answers(
            decoder_of(model, Repeating()), asked(4, sampler=Fixed())
        )
        assert captures > 0
        assert (decoder.graphs.captures > captures) == replaced


def copy_of(backbone: Backbone) -> Backbone:
    made = Backbone(backbone.config)
    made.load_state_dict(backbone.state_dict())
    return made.eval().requires_grad_(False)


def test_nothing_records_on_a_cpu_or_with_another_backend() -> None:
    backbone, recorder = tiny_model().backbone, Repeating()
    assert choose_recorder(backbone, VarlenAttention) is None
    assert choose_recorder(backbone, VarlenAttention, recorder) is recorder
    for backend in (SdpaAttention, SeparateAttention):
        assert choose_recorder(backbone, backend) is choose_recorder(backbone, backend, recorder) is None
    assert Decoder(backbone, tiny_model().special, DecoderOptions(**LIMITS)).graphs.recorder is None
