"""The demo behind the front door, for tests of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dlm import LLM, SamplingParams
from dlm.decoding.decoder import Decoder

PROMPTS = ["What is 3 + 4?", "Split 20 eggs into 2.", "Reverse the word garden.", "What is the capital of Peru?", "Hi"]
GREEDY = SamplingParams(gen_length=32, temperature=0.0, seed=1)
WARM = SamplingParams(gen_length=32, temperature=1.5, seed=7)

BABBLE: dict[str, Any] = {"gen_length": 64, "block_length": 64, "temperature": 2.0, "algorithm": "basic"}
BABBLE |= {"threshold": 0.0, "logits_eos_inf": True}
"""All tokens of one block are drawn at once, each for itself: answers of different seeds differ."""


@pytest.fixture(scope="module", name="llm")
def demo_llm() -> Iterator[LLM]:
    with LLM("demo", device="cpu") as opened:
        yield opened


def generate(llm: LLM, *arguments: Any) -> list[dict[str, Any]]:
    """Items without the one value that is a timing."""
    items = llm.generate(*arguments, use_tqdm=False)
    for item in items:
        for sample in (item, *item["outputs"]):
            sample.pop("seconds")
    return items


def requests_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that decoders get from here on."""
    seen: list[Any] = []
    add = Decoder.add
    monkeypatch.setattr(Decoder, "add", lambda self, request: (seen.append(request), add(self, request))[1])
    return seen
