"""`/health` answers while the decoder has all it can hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.running import wait_until
from tests.serving.server import Server, serving

SEQUENCES = 64
SAMPLES, FORWARDS = 300, 10
"""At least so many looks, and so many forwards meanwhile."""
LIMIT = 0.1
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
def wide_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("wide"), f"batch_size={SEQUENCES}", "request_timeout=600") as server:
        yield server


@contextmanager
def saturated(server: Server, *, stream: bool) -> Iterator[None]:
    """Clients who ask for `SEQUENCES` answers, and leave at the end."""
    leaving = threading.Event()

    def ask(seed: int) -> None:
        body = {**BUSY, "seed": seed, "temperature": 1.0, "stream": True, "dlm_events": stream}
        url = f"{server.url}/v1/chat/completions"
        with httpx.Client(timeout=600) as client, client.stream("POST", url, json=body) as answer:
            for _ in answer.iter_lines():
                if leaving.is_set():
                    return

    clients = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in range(SEQUENCES)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: stats(server)["running_requests"] == SEQUENCES, 60, "the decoder was full")
        yield
    finally:
        leaving.set()
        for client in clients:
            client.join(60)
        wait_until(lambda: stats(server)["running_requests"] == 0, 60, "everybody had left")


def stats(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/batch/stats", timeout=30).json()
    return found


def look(server: Server, client: httpx.Client) -> float:
    """Seconds within which 99 of 100 looks are answered."""
    first = last = stats(server)
    begun, seconds = time.perf_counter(), []
    while len(seconds) < SAMPLES or last["total_batches_processed"] - first["total_batches_processed"] < FORWARDS:
        for _ in range(20):
            asked = time.perf_counter()
            assert client.get("/health").status_code == 200
            seconds.append(time.perf_counter() - asked)
            time.sleep(0.01)
        last = stats(server)
        assert last["running_requests"] == SEQUENCES
    span = time.perf_counter() - begun
    forwards = last["total_batches_processed"] - first["total_batches_processed"]
    seconds.sort()
    p50, p99 = (seconds[int(len(seconds) * share)] for share in (0.5, 0.99))
    print(
        f"\n/health, {len(seconds)} times: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, most "
        f"{seconds[-1] * 1e3:.1f} ms; meanwhile {forwards} forwards of {SEQUENCES}, {span / forwards * 1e3:.0f} ms each"
    )
    return p99


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["answers", "canvases"])
def test_health_answers_within_a_tenth_of_a_second_while_sixty_four_decode(wide: Server, stream: bool) -> None:
    with saturated(wide, stream=stream), httpx.Client(base_url=wide.url) as client:
        # Other programs on a small machine may take the processor for longer than the limit: then it looks again.
        assert look(wide, client) < LIMIT or look(wide, client) < LIMIT
