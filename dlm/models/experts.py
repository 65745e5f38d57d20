"""Mixture-of-experts feed-forward: a router chooses a few experts for each token, their outputs are added by weight.

The (token, expert) pairs are sorted by expert, so that each projection is one grouped matmul, or one matmul for each
expert that has tokens. A token's expert outputs are added in the order of its own choice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlm.models.architecture import ExpertsConfig
from dlm.models.arithmetic import PROVED, Arithmetic, Linear

GroupedLinear = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rows `[rows, in]` sorted by expert, weights `[experts, out, in]` and each expert's end row `[experts]` int32, to
`[rows, out]`."""


class ExpertRouter(nn.Module):
    """Chooses experts, in at least float32.

    `softmax`: the best `top_k` of all (as LLaDA-MoE). `sigmoid`: scores and bias are added, a group's score is the sum
    of its two best experts, and the best experts of the best groups are taken (as LLaDA2, after arXiv 2412.19437).
    """

    arithmetic: Arithmetic = PROVED

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, width))
        self.bias = nn.Parameter(torch.zeros(config.num_experts)) if config.choice_bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of `x [rows, width]` the chosen experts, best first, `[rows, top_k]` int64, and their weights,
        `[rows, top_k]` in float32 (float64 for a float64 model)."""
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        config = self.config
        logits = self.arithmetic.linear(x.to(wide), self.weight.to(wide))
        scores = logits.softmax(-1) if config.scores == "softmax" else self.arithmetic.sigmoid(logits)
        ranked = scores if self.bias is None else scores + self.bias.to(wide)
        if config.groups > config.top_groups:
            ranked = in_best_groups(ranked, config.groups, config.top_groups)
        chosen = ranked.topk(config.top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if config.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * config.scaling if config.scaling != 1 else weights


def in_best_groups(ranked: Tensor, groups: int, top_groups: int) -> Tensor:
    """`ranked [rows, experts]` with -inf outside each row's `top_groups` groups by the sum of their two best."""
    grouped = ranked.view(len(ranked), groups, -1)
    standing = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    best = standing.topk(top_groups, dim=-1).indices
    outside = torch.ones_like(standing, dtype=torch.bool).scatter_(-1, best, False)
    return grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)


class Experts(nn.Module):
    """The feed-forward of one layer: router, stacked experts, and the shared expert where the family has one."""

    arithmetic: Arithmetic = PROVED

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.router = ExpertRouter(width, config)
        self.gate_up = nn.Parameter(torch.empty(config.num_experts, 2 * config.inner_size, width))
        self.down = nn.Parameter(torch.empty(config.num_experts, width, config.inner_size))
        self.shared_gate_up: Linear | None = None
        self.shared_down: Linear | None = None
        if config.shared_size:
            self.shared_gate_up = Linear(width, 2 * config.shared_size, bias=False)
            self.shared_down = Linear(config.shared_size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x [rows, width]` to `[rows, width]`."""
        chosen, weights = self.router(x)
        routed = self.routed(x, chosen, weights, self.routed_linear)
        if self.shared_gate_up is None or self.shared_down is None:
            return routed
        gate, up = self.shared_gate_up(x).chunk(2, dim=-1)
        shared: Tensor = self.shared_down(self.arithmetic.gated_silu(gate, up))
        return routed + shared

    def routed_linear(self, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        """A projection of rows sorted by expert (see `GroupedLinear`)."""
        if self.arithmetic.grouped and has_grouped_kernel(x):
            return grouped_linear(x, weight, ends)
        return looped_linear(x, weight, ends, self.arithmetic.linear)

    def routed(self, x: Tensor, chosen: Tensor, weights: Tensor, linear: GroupedLinear) -> Tensor:
        """The weighted sum of each row's chosen experts, `[rows, width]`, added in the dtype of the weights.

        Args:
            x: `[rows, width]`.
            chosen, weights: `[rows, top_k]`, from the router.
            linear: how the projections are computed.
        """
        sources, places, ends = sort_by_expert(chosen, self.config.num_experts)
        gate, up = linear(x[sources], self.gate_up, ends).chunk(2, dim=-1)
        outputs = linear(self.arithmetic.gated_silu(gate, up), self.down, ends)
        total = outputs[places[:, 0]] * weights[:, :1]
        for rank in range(1, self.config.top_k):
            total = total + outputs[places[:, rank]] * weights[:, rank : rank + 1]
        return total.to(x.dtype)


def sort_by_expert(chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lay the (row, expert) pairs out by expert; nothing waits for the device.

    Args:
        chosen: `[rows, top_k]` int64.

    Returns:
        The row that each place reads, `[rows * top_k]`; the place of each pair, `[rows, top_k]`; and each expert's end,
        `[num_experts]` int32.
    """
    rows, top_k = chosen.shape
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=chosen.device)
    counts = counts.scatter_add(0, flat, torch.ones_like(flat))
    places = torch.empty_like(flat)
    places[order] = torch.arange(rows * top_k, device=chosen.device)
    return order // top_k, places.view(rows, top_k), counts.cumsum(0).to(torch.int32)


def has_grouped_kernel(x: Tensor) -> bool:
    """Whether torch has a fast grouped kernel for `x`: for bfloat16 on CUDA from compute capability 8.0 on. Without one
    experts are looped over, which on CUDA waits for the device to know the groups."""
    grouped = x.is_cuda and x.dtype == torch.bfloat16 and hasattr(F, "grouped_mm")
    return grouped and torch.cuda.get_device_capability(x.device) >= (8, 0)


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """One call for all experts (see `GroupedLinear`); not for float64."""
    return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)


def looped_linear(
    x: Tensor, weight: Tensor, ends: Tensor, linear: Callable[[Tensor, Tensor], Tensor] = F.linear
) -> Tensor:
    """A product for each expert that has rows (see `GroupedLinear`), computed by `linear`."""
    outputs = []
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            outputs.append(linear(x[start:end], weight[expert]))
        start = end
    return torch.cat(outputs)
