"""Clients of every kind against one server: some whose answers are known, some that leave, some that are wrong."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
PROMPTS = (
    "What is 3 + 4?",
    "Split 20 eggs into 2.",
    "Reverse the word garden.",
    "Sort 9 2 55 4.",
    "Hi",
    "Add 17 and 5. " * 12,
)
HI = [{"role": "user", "content": "Hi"}]
SLOW = {
    "messages": HI, "generation_algorithm": "basic", "gen_length": 960, "steps": 960, "block_length": 960, "n": 2,
    "ignore_eos": True,
}  # fmt: skip
"""Hundreds of forwards over the whole of two canvases."""
WRONG: tuple[tuple[str, str, Any, int], ...] = (
    ("POST", CHAT, {"messages": []}, 400),
    ("POST", CHAT, {"messages": HI, "max_tokens": 0}, 400),
    ("POST", CHAT, {"messages": HI, "max_tokens": 8000}, 400),
    ("POST", CHAT, {"messages": HI, "temperature": "hot"}, 400),
    ("POST", CHAT, {"messages": HI, "n": 1000}, 400),
    ("POST", CHAT, {"messages": HI, "generation_algorithm": "magic"}, 400),
    ("POST", CHAT, {"messages": HI, "model": "other"}, 404),
    ("POST", CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "word " * 1500}]}, 400),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "x" * 10**6}]}, 400),
    ("POST", CHAT, b'{"messages": ', 400),
    ("POST", CHAT, b"\xff\xfe\x00", 400),
    ("POST", CHAT, b"x" * (5 << 20), 413),
    ("POST", PLAIN, {"prompt": ""}, 400),
    ("POST", PLAIN, {"prompt": [10**9]}, 400),
    ("POST", "/v1/generate", {"prompt": "a", "n": 3}, 400),
    ("GET", "/v1/result/123456789012", None, 404),
    ("GET", "/nothing", None, 404),
    ("GET", "/static/../app.py", None, 404),
    ("PUT", CHAT, {}, 405),
)
"""Requests that must be refused: method, path, body, status."""

Texts = list[tuple[str, str]]
"""Text and finish reason of each sample."""


@dataclass
class Case:
    """A request and what is always answered to it."""

    body: dict[str, Any]
    answer: Texts = field(default_factory=list)


def cases(algorithms: Sequence[str], chance: random.Random) -> list[Case]:
    """Three for each algorithm; their answers are still to be had."""
    found = []
    for algorithm in algorithms:
        for _ in range(3):
            body: dict[str, Any] = {
                "messages": [{"role": "user", "content": chance.choice(PROMPTS)}],
                "generation_algorithm": algorithm,
                "gen_length": chance.choice([16, 32, 64]),
                "block_length": 16,
                "seed": chance.randrange(10**6),
                "temperature": chance.choice([0.0, 0.9]),
            }
            body |= chance.choice([{}, {"max_tokens": 9}, {"stop": [" ", "3"]}, {"n": 2}])
            found.append(Case(body))
    return found


class Traffic:
    """All clients of one server.

    Args:
        url: the server.
        chance: decides what each client does next.

    Attributes:
        statuses: requests by what was done and how it ended.
        wrong: what no client should have seen.
        intended: 5xx that were asked for.
    """

    def __init__(self, url: str, chance: random.Random) -> None:
        self.url, self.chance = url, chance
        self.statuses: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.intended = 0
        self._cases: list[Case] = []
        self._http = httpx.AsyncClient(
            base_url=url, timeout=300, trust_env=False, limits=httpx.Limits(max_connections=None)
        )

    async def learn(self) -> None:
        """What is answered while nobody else asks."""
        listed = (await self._http.get("/generation/algorithms")).json()["algorithms"]
        self._cases = cases([one["name"] for one in listed if one["available"]], self.chance)
        for case in self._cases:
            response = await self._http.post(CHAT, json=case.body)
            assert response.status_code == 200, (case.body, response.text)
            case.answer = texts_of(response.json())

    async def run(self, clients: int, seconds: float) -> None:
        """So many clients for so long."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(self._client(until))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _client(self, until: float) -> None:
        kinds: dict[Callable[[], Awaitable[str]], int] = {
            self._whole: 30,
            self._streamed: 30,
            self._polled: 10,
            self._listed: 5,
            self._refused: 12,
            self._leaves_a_stream: 8,
            self._leaves_while_waiting: 5,
            self._breaks_off_its_request: 2,
        }
        while time.monotonic() < until:
            [kind] = self.chance.choices(list(kinds), list(kinds.values()))
            name = getattr(kind, "__name__", "").strip("_")
            try:
                status = await kind()
            except httpx.HTTPError as error:
                status = type(error).__name__
                self.wrong.append(f"{name}: {error!r}")
            self.statuses[name, status] += 1

    def _judge(self, response: httpx.Response, wanted: int, what: Any) -> str:
        if response.status_code != wanted:
            self.wrong.append(f"{response.status_code} instead of {wanted}: {str(what)[:200]}: {response.text[:300]}")
        return str(response.status_code)

    def _compare(self, case: Case, got: Texts) -> None:
        if got != case.answer:
            self.wrong.append(f"{case.body}: {got} instead of {case.answer}")

    async def _whole(self) -> str:
        case = self.chance.choice(self._cases)
        response = await self._http.post(CHAT, json=case.body)
        status = self._judge(response, 200, case.body)
        if status == "200":
            self._compare(case, texts_of(response.json()))
        return status

    async def _streamed(self) -> str:
        case, events = self.chance.choice(self._cases), self.chance.random() < 0.3
        body = {**case.body, "stream": True, "dlm_events": events, "stream_options": {"include_usage": True}}
        texts, reasons, last = [""] * len(case.answer), [""] * len(case.answer), ""
        async with self._http.stream("POST", CHAT, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return self._judge(response, 200, body)
            async for line in response.aiter_lines():
                last = line or last
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:]).get("choices", ()):
                        texts[choice["index"]] += choice["delta"].get("content", "")
                        reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
        if last != "data: [DONE]":
            self.wrong.append(f"a stream that ended with {last[:300]}")
            return "cut off"
        self._compare(case, list(zip(texts, reasons, strict=True)))
        return "200"

    async def _polled(self) -> str:
        case = self.chance.choice([case for case in self._cases if "n" not in case.body])
        body = {key: value for key, value in case.body.items() if key != "messages"}
        prompt = case.body["messages"][0]["content"]
        submitted = await self._http.post("/v1/generate_batch", json={**body, "prompts": [prompt, prompt]})
        if self._judge(submitted, 200, body) != "200":
            return str(submitted.status_code)
        if self.chance.random() < 0.2:
            return "200, never asked for"
        for request_id in submitted.json()["request_ids"]:
            while True:
                response = await self._http.get(f"/v1/result/{request_id}")
                if self._judge(response, 200, request_id) != "200" or response.json()["status"] != "running":
                    break
                await asyncio.sleep(0.05)
            if response.status_code == 200:
                result = response.json()
                self._compare(case, [(result["text"], result.get("finish_reason", result["status"]))])
        return "200"

    async def _listed(self) -> str:
        paths = ("/v1/models", "/stats", "/batch/stats", "/generation/algorithms", "/metrics", "/", "/ready")
        path = self.chance.choice(paths)
        return self._judge(await self._http.get(path), 200, path)

    async def _refused(self) -> str:
        method, path, body, wanted = self.chance.choice(WRONG)
        content: dict[str, Any] = {"content": body, "headers": {"Content-Type": "application/json"}}
        given = content if isinstance(body, bytes) else {"json": body} if body is not None else {}
        try:
            response = await self._http.request(method, path, **given)
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            if wanted != 413:
                raise
            return "413, closed while it was sent"
        return self._judge(response, wanted, (method, path))

    async def _leaves_a_stream(self) -> str:
        case, lines = self.chance.choice(self._cases), self.chance.randrange(6)
        body = {**case.body, "stream": True, "dlm_events": True}
        async with self._http.stream("POST", CHAT, json=body) as response:
            async for _ in response.aiter_lines():
                lines -= 1
                if lines < 0:
                    break
        return "left"

    async def _leaves_while_waiting(self) -> str:
        case = self.chance.choice(self._cases)
        try:
            await self._http.post(CHAT, json=case.body, timeout=self.chance.choice([0.005, 0.05, 0.2]))
        except httpx.TimeoutException:
            return "left"
        return "200"

    async def _breaks_off_its_request(self) -> str:
        place = httpx.URL(self.url)
        _, writer = await asyncio.open_connection(place.host, place.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
        await writer.drain()
        await asyncio.sleep(self.chance.random() / 2)
        writer.close()
        return "left"

    async def miss_a_deadline(self) -> None:
        """One request that takes longer than the server lets any take."""
        response = await self._http.post(CHAT, json=SLOW)
        self.statuses["misses_its_deadline", self._judge(response, 504, SLOW)] += 1
        self.intended += response.status_code == 504


def texts_of(answer: dict[str, Any]) -> Texts:
    """Of a chat completion."""
    return [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]]
