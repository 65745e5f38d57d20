"""Mixture-of-experts layers: against the definition, grouped against looped, and bitwise batch invariance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dlm.models.architecture import ExpertsConfig
from dlm.models.experts import Experts, grouped_linear, looped_linear, sort_by_expert
from tests.rounding import of_products

WIDTH = 24
SOFTMAX = ExpertsConfig(num_experts=8, top_k=3, inner_size=24)
GROUPED = ExpertsConfig(
    num_experts=12, top_k=3, inner_size=24, scores="sigmoid", normalize=True, scaling=2.5, groups=4, top_groups=2,
    choice_bias=True, shared_size=24,
)  # fmt: skip
CONFIGS = {
    "softmax": SOFTMAX,
    "softmax_normalized": replace(SOFTMAX, normalize=True),
    "sigmoid": replace(GROUPED, groups=1, top_groups=1, choice_bias=False),
    "grouped": GROUPED,
}


def experts(config: ExpertsConfig, dtype: torch.dtype = torch.float32) -> Experts:
    layer = Experts(WIDTH, config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return layer.to(dtype).requires_grad_(False)


def defined(layer: Experts, token: Tensor) -> Tensor:
    """The output for one token `[width]`, by plain loops over experts and groups."""
    config = layer.config
    logits = [float(row @ token) for row in layer.router.weight]
    if config.scores == "softmax":
        scores = torch.tensor(logits, dtype=token.dtype).softmax(0).tolist()
    else:
        scores = [1 / (1 + 2.718281828459045**-logit) for logit in logits]
    bias = [0.0] * len(scores) if layer.router.bias is None else layer.router.bias.tolist()
    ranked = [score + extra for score, extra in zip(scores, bias, strict=True)]
    size = config.num_experts // config.groups
    members = [range(group * size, (group + 1) * size) for group in range(config.groups)]
    standing = [sum(sorted((ranked[i] for i in group), reverse=True)[:2]) for group in members]
    best = sorted(range(config.groups), key=lambda group: -standing[group])[: config.top_groups]
    allowed = [i for group in best for i in members[group]]
    chosen = sorted(allowed, key=lambda i: -ranked[i])[: config.top_k]
    total = sum(scores[i] for i in chosen) if config.normalize else 1.0
    output = torch.zeros_like(token)
    for i in chosen:
        gate, up = (layer.gate_up[i] @ token).chunk(2)
        output += scores[i] / total * config.scaling * (layer.down[i] @ (F.silu(gate) * up))
    if layer.shared_gate_up is not None and layer.shared_down is not None:
        gate, up = (layer.shared_gate_up.weight @ token).chunk(2)
        output += layer.shared_down.weight @ (F.silu(gate) * up)
    return output


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layer_gives_what_the_definition_gives(name: str) -> None:
    layer = experts(CONFIGS[name], torch.float64)
    x = torch.randn(16, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([defined(layer, token) for token in x])
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped matmul; the loop is used")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_grouped_matmul_equals_the_loop(name: str, dtype: torch.dtype) -> None:
    layer = experts(CONFIGS[name], dtype)
    x = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)
    chosen, weights = layer.router(x)
    looped, grouped = (layer.routed(x, chosen, weights, linear) for linear in (looped_linear, grouped_linear))
    config = CONFIGS[name]
    rounding = of_products(dtype, WIDTH, 1, config.inner_size, config.top_k) * float(looped.abs().max())
    torch.testing.assert_close(grouped, looped, atol=rounding, rtol=0.0)
    assert (grouped - layer.routed(x.flip(0), chosen, weights, looped_linear)).abs().max() > 2 * rounding


def test_pairs_are_laid_out_by_expert() -> None:
    """The number of places does not depend on the choice, so that a GPU need not wait for it."""
    chosen = torch.randint(0, 8, (16, 3), generator=torch.Generator().manual_seed(3))
    sources, places, ends = sort_by_expert(chosen, 8)
    assert len(sources) == 48
    assert torch.equal(sources[places], torch.arange(16).unsqueeze(1).expand(16, 3))
    owner = torch.searchsorted(ends.long(), places, right=True)
    assert torch.equal(owner, chosen)


@pytest.mark.bits
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_token_has_the_same_bits_alone_and_in_company(name: str, dtype: torch.dtype) -> None:
    layer = experts(CONFIGS[name], dtype)
    generator = torch.Generator().manual_seed(4)
    others = torch.randn(40, WIDTH, generator=generator).to(dtype)
    for token in torch.randn(5, WIDTH, generator=generator).to(dtype):
        alone = layer(token.unsqueeze(0))[0]
        for rows in (2, 5, 12, 40):
            for place in {0, 1, rows // 2, rows - 1}:
                company = others[:rows].clone()
                company[place] = token
                assert torch.equal(layer(company)[place], alone)
        crowd = token.repeat(40, 1)
        assert torch.equal(layer(crowd), alone.expand(40, -1))


def test_the_router_works_in_float32_for_a_bfloat16_model() -> None:
    layer = experts(GROUPED, torch.bfloat16)
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(5)).bfloat16()
    chosen, weights = layer.router(x)
    wide = experts(GROUPED, torch.bfloat16).float()
    expected_choice, expected = wide.router(x.float())
    assert weights.dtype == torch.float32
    assert torch.equal(chosen, expected_choice)
    assert torch.equal(weights, expected)
    rounding = of_products(torch.float32, GROUPED.top_k, GROUPED.top_k)
    torch.testing.assert_close(weights.sum(-1), torch.full((8,), 2.5), atol=0.0, rtol=rounding)


def test_tokens_take_different_experts_and_the_bias_changes_the_choice_only() -> None:
    layer = experts(GROUPED)
    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(6))
    chosen, _ = layer.router(x)
    assert len(chosen.unique()) > GROUPED.top_k
    assert layer.router.bias is not None
    layer.router.bias[3:6] = 100.0
    steered, weights = layer.router(x)
    assert torch.equal(steered.sort(-1).values, torch.tensor([3, 4, 5]).expand(32, 3))
    assert (weights <= GROUPED.scaling).all()
