"""What comes over HTTP is what the library gives, alone, in any mix, streamed or not."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from dlm import LLM, SamplingParams
from tests.serving.server import Server

ALGORITHMS = ("basic", "dual_cache", "prefix_cache", "dinfer_hierarchy", "klass", "entropy_bound", "dinfer_vicinity")
PROMPTS = (
    "What is 3 + 4?",
    "Split 20 eggs into 2.",
    "Reverse the word garden.",
    "Sort 9 2 55 4.",
    "Hi",
    "Add 17 and 5.",
)


def draw(chance: random.Random) -> dict[str, Any]:
    """A body without its prompt."""
    body: dict[str, Any] = {
        "generation_algorithm": chance.choice(ALGORITHMS),
        "gen_length": chance.choice([16, 32, 48]),
        "block_length": chance.choice([8, 16]),
        "temperature": chance.choice([0.0, 0.7, 1.3]),
        "seed": chance.randrange(10**6),
        "n": chance.choice([1, 1, 2]),
    }
    if chance.random() < 0.3:
        body["max_tokens"] = chance.randrange(1, 12)
    if chance.random() < 0.3:
        body["stop"] = chance.choice([" ", "\n", "3"])
    if chance.random() < 0.2:
        body["cfg_scale"] = 1.5
    return body


def expected(llm: LLM, prompt: str, body: dict[str, Any]) -> list[tuple[str, str]]:
    values = dict(body)
    params = SamplingParams(algorithm=values.pop("generation_algorithm"), **values)
    [item] = llm.generate([prompt], params, use_tqdm=False)
    return [(sample["text"], sample["finish_reason"]) for sample in item["outputs"]]


def ask(server: Server, prompt: str, body: dict[str, Any], *, stream: bool) -> list[tuple[str, str]]:
    whole = {**body, "messages": [{"role": "user", "content": prompt}], "stream": stream}
    url = f"{server.url}/v1/chat/completions"
    if not stream:
        answer = httpx.post(url, json=whole).raise_for_status().json()
        return [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]]
    texts, reasons = [""] * body["n"], [""] * body["n"]
    with httpx.stream("POST", url, json=whole) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content", "")
                    reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    return list(zip(texts, reasons, strict=True))


@pytest.mark.slow
def test_two_hundred_requests_sixty_four_at_a_time_equal_the_library(server: Server) -> None:
    chance = random.Random(7)
    cases = [(chance.choice(PROMPTS), draw(chance), chance.random() < 0.5) for _ in range(200)]
    with LLM("demo", device="cpu") as llm:
        wanted = [expected(llm, prompt, body) for prompt, body, _ in cases]
    with ThreadPoolExecutor(64) as pool:
        got = list(pool.map(lambda case: ask(server, case[0], case[1], stream=case[2]), cases))
    assert got == wanted
    stats = httpx.get(f"{server.url}/batch/stats").json()
    assert max(map(int, stats["batch_size_histogram"])) >= 12
