"""`/health` answers while the decoder has all it can hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.running import TIMEOUT, wait_until
from tests.serving.inside import Held, Inside, serving_inside

SEQUENCES = 64
FORWARDS, LOOKS = 4, 20
"""Forwards that are looked at, and looks during each."""
BUSY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Reverse the word garden."}],
    "gen_length": 384,
    "block_length": 32,
    "steps": 384,
    "generation_algorithm": "dual_cache",
    "ignore_eos": True,
}
"""A forward for each token: it goes on for as long as the test looks."""


@pytest.fixture(scope="module", name="wide")
def wide_server() -> Iterator[Inside]:
    with serving_inside(batch_size=SEQUENCES, request_timeout=2 * TIMEOUT) as server:
        yield server


@contextmanager
def saturated(server: Inside, *, stream: bool) -> Iterator[Held]:
    """`SEQUENCES` clients whose answers are in mid-generation; they leave at the end."""
    leaving = threading.Event()

    def ask(seed: int) -> None:
        body = {**BUSY, "seed": seed, "temperature": 1.0, "stream": True, "dlm_events": stream}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            for _ in answer.iter_lines():
                if leaving.is_set():
                    return

    clients = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in range(SEQUENCES)]
    with server.held() as held:
        for client in clients:
            client.start()
        try:
            wait_until(lambda: server.unfinished() == SEQUENCES, "all had asked")
            held.step(2)
            assert server.stats()["running_requests"] == SEQUENCES
            yield held
        finally:
            leaving.set()
            held.release()
            for client in clients:
                client.join(TIMEOUT)
            wait_until(lambda: server.unfinished() == 0, "everybody had left")


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["answers", "canvases"])
def test_health_answers_in_the_middle_of_forwards_of_sixty_four(wide: Inside, stream: bool) -> None:
    """Neither a forward that goes on nor what was told of the last one keeps an answer back."""
    with saturated(wide, stream=stream) as held, httpx.Client(base_url=wide.url) as client:
        for _ in range(FORWARDS):
            begun = held.begun
            assert {client.get("/health").status_code for _ in range(LOOKS)} == {200}
            assert held.begun == begun
            held.step()
        assert wide.stats()["running_requests"] == SEQUENCES
