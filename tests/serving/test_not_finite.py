"""A request whose logits are not finite is told so, and the ones beside it are answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from dlm.decoding.canvas import Canvas
from tests.decoding.damage import damage
from tests.serving.inside import Inside, serving_inside

ASKED: dict[str, Any] = {"gen_length": 32, "temperature": 0.0}
GOOD, BAD = "Sort 7 3 12.", "Sort 5 1."


@pytest.fixture(scope="module", name="server")
def inside() -> Iterator[Inside]:
    with serving_inside(batch_size=4) as server:
        bad = tuple(server.service.codec.encode(BAD))
        decoder = server.service.thread.decoder

        def chosen(canvas: Canvas) -> bool:
            return canvas.request.prompt_ids == bad

        damage(decoder, chosen)
        yield server


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_it_ends_with_an_error_that_says_so(server: Inside, stream: bool) -> None:
    def ask(prompt: str) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": prompt}], "stream": stream, **ASKED}
        return httpx.post(f"{server.url}/v1/chat/completions", json=body)

    alone = ask(GOOD)
    with server.held() as held, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, prompt) for prompt in (GOOD, BAD)]
        held.wait()
        held.release()
        good, bad = (one.result() for one in asked)
    assert text_of(good) == text_of(alone) != ""
    assert bad.status_code == (200 if stream else 500)
    assert "the logits of position" in bad.text
    assert "not finite in forward 1" in bad.text
    assert httpx.get(f"{server.url}/health").status_code == 200


def text_of(reply: httpx.Response) -> str:
    if "data:" not in reply.text:
        return str(reply.json()["choices"][0]["message"]["content"])
    news = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    return "".join(one["choices"][0]["delta"].get("content") or "" for one in news if one.get("choices"))
