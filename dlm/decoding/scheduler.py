"""Selects the canvases of each step by their costs. Plain Python, no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Scheduler(Generic[Item]):
    """Keeps the running canvases in scheduling order.

    Args:
        max_num_seqs: canvases running at once.
        max_num_batched_tokens: rows of one forward; a longer window runs alone.
    """

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.running: list[Item] = []

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.max_num_seqs

    def admit(self, item: Item) -> None:
        self.running.append(item)

    def remove(self, item: Item) -> None:
        self.running.remove(item)

    def pick(self, cost: Callable[[Item], int]) -> list[Item]:
        """Canvases of the next forward: in scheduling order, those whose windows fit the token budget.

        The first always runs, and canvases left out move to the front, so none starves.
        """
        budget = self.max_num_batched_tokens
        picked: list[Item] = []
        waiting: list[Item] = []
        for item in self.running:
            price = cost(item)
            if price <= budget or not picked:
                picked.append(item)
                budget -= price
            else:
                waiting.append(item)
        if waiting:
            self.running = waiting + picked
        return picked
