"""The floor: a lower bound on our time on this machine, whatever the program.

Each forward counts as one kernel at the machine's peak: max(all operations / peak, all bytes / bandwidth). Operations
are those of the matmuls and of attention; bytes are the weights, once each, and the keys and values attended to. Of E
experts, a forward reads those that its rows choose, k per row, assumed evenly spread: E (1 - (1 - k/E) ^ rows).

Independent of torch and of clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlm.bench.workloads import Forward
from dlm.models.architecture import BackboneConfig


@dataclass(frozen=True)
class BodyCost:
    """The parts of a model that cost operations and bytes.

    Attributes:
        dense: parameters of the matmuls that every row passes through, over all layers.
        expert: parameters of one expert.
        expert_layers, num_experts, top_k: of the layers with experts.
        attention_width: values per position in all query heads, over all layers.
        cached_width: values per position in all key and value heads, over all layers.
        head: parameters of the LM head.
        itemsize: bytes per value.
    """

    dense: int
    expert: int
    expert_layers: int
    num_experts: int
    top_k: int
    attention_width: int
    cached_width: int
    head: int
    itemsize: int

    @classmethod
    def of(cls, config: BackboneConfig, itemsize: int) -> BodyCost:
        """The costs of an architecture."""
        hidden, layers, experts = config.hidden_size, config.num_layers, config.experts
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        expert_layers = sum(config.has_experts(layer) for layer in range(layers))
        dense = layers * hidden * (2 * queries + 2 * keys)
        dense += (layers - expert_layers) * 3 * hidden * config.intermediate_size
        if experts is not None:
            dense += expert_layers * hidden * (experts.num_experts + 3 * experts.shared_size)
        return cls(
            dense=dense,
            expert=0 if experts is None else 3 * hidden * experts.inner_size,
            expert_layers=expert_layers,
            num_experts=0 if experts is None else experts.num_experts,
            top_k=0 if experts is None else experts.top_k,
            attention_width=layers * queries,
            cached_width=config.kv_values_per_token,
            head=hidden * config.vocab_size,
            itemsize=itemsize,
        )

    @property
    def row_numbers(self) -> int:
        """Parameters that one row is multiplied with, without the head."""
        return self.dense + self.expert_layers * self.top_k * self.expert

    def operations(self, forward: Forward) -> float:
        """Operations of one forward."""
        pairs = sum(queries * keys for queries, keys in forward.windows)
        head = (forward.head_rows + forward.soft_rows) * self.head
        return 2.0 * (forward.rows * self.row_numbers + head) + 4.0 * pairs * self.attention_width

    def bytes(self, forward: Forward) -> float:
        """Bytes of one forward; the expected embedding reads the embedding matrix."""
        numbers = float(self.dense + self.head * (1 + (forward.soft_rows > 0)))
        if self.num_experts:
            missed = (1 - self.top_k / self.num_experts) ** forward.rows
            numbers += self.expert_layers * self.expert * self.num_experts * (1 - missed)
        cached = sum(keys for _, keys in forward.windows) * self.cached_width
        return (numbers + cached) * self.itemsize


def costs(forwards: Sequence[Forward], body: BodyCost) -> tuple[tuple[float, float], ...]:
    """Operations and bytes of each forward."""
    return tuple((body.operations(one), body.bytes(one)) for one in forwards)


def floor(needed: Sequence[tuple[float, float]], peak: float, bandwidth: float) -> float:
    """Seconds at `peak` operations per second and `bandwidth` bytes per second, whichever limits each forward."""
    return sum(max(operations / peak, moved / bandwidth) for operations, moved in needed)
