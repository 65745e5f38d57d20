"""Where caching loses nothing: one layer, and models that attend in blocks, held to forwards over everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import BlockCausal, CausalCommit, DualCache, Engine, Full, PrefixCache, Sparse, Vicinity
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Fixed, Sampler, Threshold
from dlm.models.families import SpecialTokens
from dlm.models.io.loading import Checkpoint, empty_backbone
from dlm.models.sizes import SIZES
from tests.decoding.worlds import BY_NAME, stir
from tests.models.attention.windows import Mask, logits_of
from tests.rounding import of_a_forward

PARAMS = SamplingParams(gen_length=24, block_length=8, steps=24, temperature=0.0, ignore_eos=True, seed=1, record=True)
PROMPT = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)


def answer(model: Checkpoint, engine: Engine, sampler: Sampler, **params: Any) -> Completion:
    request = Request("a", PROMPT, dataclasses.replace(PARAMS, **params), engine, sampler)
    options = DecoderOptions(arena_tokens=100, poison=True)
    (completion,) = Decoder(model.backbone, model.special, options).run([request])
    assert completion.error is None
    return completion


def one_layer(dtype: torch.dtype) -> Checkpoint:
    config = dataclasses.replace(SIZES["tiny"], vocab_size=64, num_layers=1)
    model = empty_backbone(config, dtype, "cpu")
    model.initialize(0)
    family = BY_NAME["llada"].checkpoint().family
    made = Checkpoint(model.eval().requires_grad_(False), family, SpecialTokens(63, 62), None)
    model.embedding.weight.data.mul_(0.1)
    stir(made)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", [Fixed(), Threshold(0.3)])
@pytest.mark.parametrize(
    "engine", [PrefixCache(), DualCache(), Vicinity(4, 4, 2), Vicinity(16, 16, 0), Sparse(1.0, delay_step=0)]
)
def test_one_layer_makes_the_engines_equal(engine: Engine, sampler: Sampler, dtype: torch.dtype) -> None:
    """Keys and values of a single layer depend on tokens alone, so caching loses nothing: no tolerance on tokens and
    steps. Log-probabilities differ in their last bits, because the last rows of a window take another path through the
    attention kernel than those before them and `sparse` keeps its keys in another order."""
    model = one_layer(dtype)
    whole, cached = (answer(model, each, sampler, temperature=2.0) for each in (Full(), engine))
    assert cached.canvas_ids == whole.canvas_ids
    assert cached.step_map == whole.step_map
    assert cached.positions < whole.positions
    assert len(set(whole.canvas_ids)) > 5
    assert whole.logprobs is not None
    keys = len(PROMPT) + PARAMS.gen_length
    rounding = of_a_forward(model.backbone.config, dtype, keys) * float(np.abs(whole.logprobs).max())
    np.testing.assert_allclose(cached.logprobs, whole.logprobs, atol=rounding, rtol=0.0)


def watched(monkeypatch: pytest.MonkeyPatch, model: Checkpoint) -> list[tuple[np.ndarray, np.ndarray, Tensor]]:
    """For each forward of a decoder: the canvas before it, the positions asked for, and their logits."""
    from dlm.decoding.scoring import selection

    seen: list[tuple[np.ndarray, np.ndarray, Tensor]] = []
    select = selection.Selector.select

    def watch(self: Any, batch: Any, canvases: Any, hidden: Tensor) -> Any:
        (canvas,) = canvases
        asked = canvas.scored()
        with torch.inference_mode():
            logits = self.model.head(hidden[torch.from_numpy(batch.rows(canvas, asked))])
        seen.append((canvas.tokens.copy(), asked, logits))
        return select(self, batch, canvases, hidden)

    monkeypatch.setattr(selection.Selector, "select", watch)
    return seen


def block_of(size: int) -> Mask:
    return lambda query, key: query // size >= key // size


def causal_before(start: int) -> Mask:
    """The block that begins at `start` sees all before it and itself; what lies before is causal."""
    return lambda query, key: (key <= query) | ((query >= start) & (key >= start))


def assert_equal(model: Checkpoint, mine: Tensor, expected: Tensor) -> None:
    """Up to another order of summation in float32."""
    keys = len(PROMPT) + PARAMS.gen_length
    rounding = of_a_forward(model.backbone.config, torch.float32, keys) * float(expected.abs().max())
    torch.testing.assert_close(mine, expected, atol=rounding, rtol=0.0)


def full_logits(model: Checkpoint, tokens: np.ndarray, mask: Mask) -> Tensor:
    return logits_of(model.backbone, torch.from_numpy(tokens).unsqueeze(0), mask)[0]


@pytest.mark.parametrize(("name", "size"), [("llada2", 8), ("sdar", 4), ("sdar", 8)])
def test_block_causal_equals_a_masked_forward_over_everything(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BY_NAME[name].checkpoint()
    seen = watched(monkeypatch, model)
    completion = answer(model, BlockCausal(), Threshold(0.5), block_length=size)
    assert len(seen) == completion.nfe > 3
    for tokens, asked, logits in seen:
        stop = (int(asked[-1]) // size + 1) * size
        expected = full_logits(model, tokens[:stop], block_of(size))
        assert_equal(model, logits, expected[asked])


def test_block_causal_differs_from_a_forward_in_which_all_see_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail."""
    model = BY_NAME["sdar"].checkpoint()
    seen = watched(monkeypatch, model)
    answer(model, BlockCausal(), Threshold(0.5), block_length=4)
    tokens, asked, logits = seen[-1]
    everything: Callable[[Tensor, Tensor], Tensor] = lambda query, key: (query >= 0) & (key >= 0)  # noqa: E731
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(model, logits, full_logits(model, tokens, everything)[asked])


def test_causal_commit_equals_masked_forwards_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies before the block is causal, also a finished block; the block sees all of it and itself. The first
    position of each block is the argmax of the causal pass's last row."""
    model = BY_NAME["nemotron"].checkpoint()
    seen = watched(monkeypatch, model)
    completion = answer(model, CausalCommit(), Threshold(0.5), block_length=8)
    assert len(seen) == completion.nfe
    final = np.array(completion.prompt_ids + completion.canvas_ids)
    commits = 0
    for tokens, asked, logits in seen:
        start = (int(asked[0]) - len(PROMPT)) // 8 * 8 + len(PROMPT)
        if tokens[start] == model.special.mask_id:
            commits += 1
            assert asked.tolist() == [start]
            expected = full_logits(model, tokens[:start], lambda query, key: query >= key)[-1]
            assert_equal(model, logits[0], expected)
            expected = expected.clone()
            expected[model.special.mask_id] = -torch.inf
            assert final[start] == int(expected.argmax())
        else:
            expected = full_logits(model, tokens[: start + 8], causal_before(start))
            assert_equal(model, logits, expected[asked])
    assert commits == 3
    assert completion.nfe > 6
