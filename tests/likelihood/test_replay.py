"""Replayed log-probabilities are those that the decoder recorded, where it saw what a replay sees."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import Autoregressive, BlockCausal, CausalCommit, DualCache, Engine, Full
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Fixed, LLaDA21Edit, RemaskHierarchy
from dlm.errors import RequestError
from dlm.likelihood import Likelihood
from tests.decoding.drawing import draw_params, draw_prompt, draw_sampler
from tests.decoding.worlds import BY_NAME, World
from tests.likelihood.models import FAMILIES, MASK, causal_before, likelihood, naive, predicted, small
from tests.models.attention.windows import block_causal, causal, everything

PER_WORLD = 24
ENGINES: dict[str, tuple[Engine, ...]] = {
    "golden": (Full(),),
    "llada": (Full(),),
    "moe": (Full(),),
    "dream": (Full(),),
    "llada2": (BlockCausal(),),
    "sdar": (BlockCausal(),),
    "nemotron": (CausalCommit(), Autoregressive()),
}


def requests(world: World) -> list[Request]:
    """Random requests whose tokens stay as they are revealed, by engines that see the full view, warm ones among
    them."""
    chance, model = random.Random(world.name), world.checkpoint()
    drawn: list[Request] = []
    while len(drawn) < PER_WORLD:
        engine = chance.choice(ENGINES[world.name])
        sampler = draw_sampler(chance, engine, model.backbone.config)
        if isinstance(sampler, LLaDA21Edit | RemaskHierarchy) or sampler.name == "fastdllm_dream":
            continue
        prompt = draw_prompt(chance, model.special, model.backbone.config.vocab_size)
        filled = tuple(1 if token == model.special.mask_id else token for token in prompt)
        params = replace(draw_params(chance), record=True, n=1)
        drawn.append(Request(f"r{len(drawn)}", filled, params, engine, sampler))
    return drawn


def decode(world: World, asked: list[Request]) -> list[tuple[Request, Completion]]:
    model = world.checkpoint()
    decoder = Decoder(model.backbone, model.special, DecoderOptions(poison=True))
    by_id = {request.id: request for request in asked}
    return [(by_id[completion.request_id], completion) for completion in decoder.run(asked)]


def block_length(request: Request) -> int | None:
    if isinstance(request.engine, Full):
        return None
    return request.engine.fixed_block or request.params.block_length


@pytest.mark.parametrize("name", ENGINES)
def test_replay_gives_what_the_decoder_recorded(name: str) -> None:
    """Bit for bit where both compute the same windows, else within 1e-4 in float32; and the path with gradients within
    1e-4 of both."""
    world = BY_NAME[name]
    model = world.checkpoint()
    scorer = Likelihood(model.backbone, model.special, max_tokens=200, logits_mib=1)
    seen: Counter[str] = Counter()
    worst = 0.0
    for request, completion in decode(world, requests(world)):
        assert completion.error is None
        assert completion.step_map is not None
        parts = completion.prompt_ids, completion.canvas_ids, completion.step_map
        blocks = {"block_length": block_length(request), "align_blocks": request.params.align_blocks}
        replayed = scorer.replay_logprobs(*parts, **blocks).numpy()
        revealed, recorded = np.array(completion.step_map) > 0, np.array(completion.logprobs)
        assert (replayed[~revealed] == 0).all()
        gap = np.abs(replayed - recorded)[revealed]
        worst = max(worst, gap.max())
        seen.update(tokens=len(gap), warm=request.params.temperature > 0, compared=1)
        assert name == "nemotron" or (gap == 0).all()
        model.backbone.requires_grad_(True)
        graded = scorer.replay_logprobs(*parts, **blocks, gradients=True)
        model.backbone.requires_grad_(False)
        assert graded.requires_grad
        np.testing.assert_allclose(graded.detach().numpy(), replayed, atol=1e-4)
    print(f"\n{name}: {dict(seen)}, worst {worst:.1e}")
    assert 0 < seen["warm"] < seen["compared"] == PER_WORLD
    assert worst < 1e-4
    assert seen["tokens"] > 200


def test_replay_of_stale_caches_is_the_full_view() -> None:
    """What a cached engine recorded is not what a replay gives: the comparison above can fail."""
    world = BY_NAME["llada"]
    params = SamplingParams(gen_length=24, block_length=8, steps=24, temperature=0.0, record=True)
    ((_, completion),) = decode(world, [Request("r", (5, 6, 7, 8), params, DualCache(), Fixed())])
    model = world.checkpoint()
    replayed = Likelihood(model.backbone, model.special).replay_logprobs(
        completion.prompt_ids, completion.canvas_ids, completion.step_map or ()
    )
    assert (replayed - torch.tensor(completion.logprobs, dtype=torch.float64)).abs().max() > 0.01


PROMPT, CANVAS, STEPS = (1, 2, 3), (4, 5, 6, 7, 8, 0, 1), (3, 1, 5, 2, 7, 6, 4)
"""Three tokens of a prompt and one block of 4 and half another, decided one by one."""


def states(family: str, canvas: tuple[int, ...], steps: tuple[int, ...]) -> list[float]:
    """The definition: one forward over everything for each token."""
    model, length, results = small(family), len(PROMPT) + len(canvas), []
    attention = model.backbone.config.attention
    for place, (token, step) in enumerate(zip(canvas, steps, strict=True), start=len(PROMPT)):
        seen = [*PROMPT, *(known if when < step else MASK for known, when in zip(canvas, steps, strict=True))]
        mask = everything
        if attention == "block_causal":
            start, size = place // 4 * 4, 4
            seen = [*PROMPT, *canvas][:start] + (seen + [MASK] * 8)[start : start + size]
            mask = block_causal(4)
        elif attention == "causal_context":
            start = len(PROMPT) + (place - len(PROMPT)) // 4 * 4
            seen = [*PROMPT, *canvas][:start] + seen[start : min(start + 4, length)]
            if place == start:
                with torch.no_grad():
                    results.append(float(naive(model, seen[:start], causal)[-1, token]))
                continue
            mask = causal_before(start)
        results.append(predicted(model, seen, place, token, mask))
    return results


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_equals_a_forward_over_everything_for_each_token(family: str) -> None:
    replayed = likelihood(family).replay_logprobs(PROMPT, CANVAS, STEPS)
    np.testing.assert_allclose(replayed.numpy(), states(family, CANVAS, STEPS), atol=1e-12)


@pytest.mark.parametrize(
    ("family", "merged"),
    [
        ("llada", (3, 1, 5, 1, 7, 5, 3)),
        ("dream", (3, 1, 5, 1, 7, 5, 3)),
        ("sdar", (3, 2, 5, 2, 6, 6, 4)),
        ("nemotron", (3, 1, 3, 1, 6, 4, 4)),
    ],
)
def test_shrink_merges_steps_within_a_block(family: str, merged: tuple[int, ...]) -> None:
    """Two steps at a time: over the canvas of a bidirectional model, else within each block (SDAR's first holds three
    tokens of the prompt and one step; Nemotron's begins behind the prompt)."""
    steps = (3, 1, 5, 2, 7, 6, 4)
    if family == "sdar":
        steps, merged = (1, 2, 4, 3, 5, 6, 7), (1, 2, 4, 2, 4, 6, 6)
    if family == "nemotron":
        steps, merged = (1, 3, 4, 2, 5, 7, 6), (1, 3, 3, 1, 5, 7, 5)
    replayed = likelihood(family).replay_logprobs(PROMPT, CANVAS, steps, shrink=2)
    np.testing.assert_allclose(replayed.numpy(), states(family, CANVAS, merged), atol=1e-12)


def test_temperature_divides_the_logits() -> None:
    model, scorer = small("llada"), likelihood("llada")
    seen = [*PROMPT, *([MASK] * 2)]
    with torch.no_grad():
        expected = (naive(model, seen) / 0.7).log_softmax(-1)[[3, 4], [4, 5]]
    replayed = scorer.replay_logprobs(PROMPT, (4, 5), (1, 1), temperature=0.7)
    torch.testing.assert_close(replayed, expected, atol=1e-12, rtol=0)


def test_masks_behind_the_given_tokens_are_seen() -> None:
    """A bidirectional model saw the whole canvas; what it never decided scores nothing."""
    scorer = likelihood("llada")
    whole = scorer.replay_logprobs(PROMPT, (4, 5, MASK, MASK), (1, 2, 0, 0))
    cut = scorer.replay_logprobs(PROMPT, (4, 5), (1, 2), canvas_length=4)
    assert whole[2:].tolist() == [0, 0]
    assert torch.equal(whole[:2], cut)
    assert not torch.equal(cut, scorer.replay_logprobs(PROMPT, (4, 5), (1, 2)))
    assert scorer.replay_logprobs(PROMPT, (MASK,), (0,)).tolist() == [0]


@pytest.mark.parametrize(
    ("canvas", "steps", "options", "message"),
    [
        ((4, 5), (1,), {}, "replay_step_map has 1 entries for 2 replay_token_ids"),
        ((4, 5), (1, 0), {}, r"replay_step_map\[1\]=0 does not match replay_token_ids\[1\]=5"),
        ((4, MASK), (1, 2), {}, r"replay_step_map\[1\]=2 does not match"),
        ((4, 5), (1, 2), {"shrink": 0}, "shrink=0 must be"),
        ((4, 5), (1, 2), {"temperature": 0.0}, "temperature=0.0 must be"),
        ((4, 5), (1, 2), {"block_length": 0}, "block_length=0 must be"),
        ((4, 5), (1, 2), {"canvas_length": 1}, "canvas_length=1 must be"),
        ((4, 50), (1, 2), {}, "token 50 is outside the vocabulary 0..10"),
        ((), (), {}, "the completion is empty"),
        ((4, 5), (1, 2), {"gradients": True}, "no parameter of the model has requires_grad"),
    ],
)
def test_what_does_not_fit_is_refused(
    canvas: tuple[int, ...], steps: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        likelihood("llada").replay_logprobs(PROMPT, canvas, steps, **options)
