"""One server under load: what it reports about itself, and one request to it."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from dlm.errors import RunError
from dlm.serving.settings import KEY_VARIABLE, api_key

CHAT = "/v1/chat/completions"
LOCAL = ("127.0.0.1", "localhost", "::1")
OK = "200"


@dataclass(frozen=True)
class Reply:
    """What one client saw.

    Attributes:
        status: `200`, another HTTP status, or the kind of failure.
        begun: `time.perf_counter()` when the request was due.
        seconds: from then to its end.
        first: from then to the first text of a streamed answer; None if there is none.
        prompt_tokens, tokens: as the server counts them.
        message: of an error.
    """

    status: str
    begun: float
    seconds: float
    first: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    message: str = ""


@dataclass(frozen=True)
class LoadTarget:
    """A server to load.

    Attributes:
        name: in the table.
        url: of the server, or of the router in front of its workers.
        model: the model it serves.
        algorithms: those it can run; empty if it does not report them.
    """

    name: str
    url: str
    model: str
    algorithms: tuple[str, ...]

    @classmethod
    def at(cls, url: str, name: str = "") -> LoadTarget:
        """The server at `url`. Raises `RunError` if it does not respond like one."""
        url = url.rstrip("/").removesuffix("/v1")
        try:
            with httpx.Client(base_url=url, headers=authorization(), timeout=30, trust_env=False) as client:
                models = client.get("/v1/models")
                if models.status_code == 401:
                    raise RunError(f"url={url} requires an API key; set {KEY_VARIABLE}")
                model = str(models.raise_for_status().json()["data"][0]["id"])
                listed = client.get("/generation/algorithms")
                known = listed.json()["algorithms"] if listed.status_code == 200 else []
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError) as error:
            raise RunError(
                f"url={url} does not respond like a server ({type(error).__name__}: {error}); start one with "
                "python -m dlm.serve"
            ) from error
        return cls(name or url, url, model, tuple(one["name"] for one in known if one["available"]))

    def batch_sizes(self) -> Counter[int] | None:
        """Number of forwards so far by number of canvases, over all workers; None if unavailable."""
        sizes: Counter[int] = Counter()
        try:
            with httpx.Client(headers=authorization(), timeout=5, trust_env=False) as client:
                for url in self._workers(client):
                    answer = client.get(f"{url}/batch/stats").raise_for_status()
                    for size, count in answer.json()["batch_size_histogram"].items():
                        sizes[int(size)] += count
        except (httpx.HTTPError, ValueError, KeyError):
            return None
        return sizes

    def _workers(self, client: httpx.Client) -> list[str]:
        """URLs of the workers; behind a router each has its own figures. Raises `ValueError` if unreachable."""
        workers = [str(one["url"]) for one in client.get(f"{self.url}/stats").raise_for_status().json()["workers"]]
        if len(workers) == 1:
            return [self.url]
        if urlsplit(self.url).hostname not in LOCAL and any(urlsplit(one).hostname in LOCAL for one in workers):
            raise ValueError("the workers listen on another machine's loopback address")
        return workers


def authorization() -> dict[str, str]:
    """The header with the API key, if the environment has one."""
    key = api_key()
    return {"Authorization": f"Bearer {key}"} if key else {}


class Client:
    """Sends requests to one server, any number at once.

    Args:
        target: the server.
        timeout: seconds that it waits for the next byte.
    """

    def __init__(self, target: LoadTarget, timeout: float) -> None:
        self.target = target
        self._http = httpx.AsyncClient(
            base_url=target.url,
            headers=authorization(),
            timeout=timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def ask(self, body: dict[str, Any], due: float | None = None) -> Reply:
        """Send one request; a failure is returned as a reply, too.

        Args:
            body: of a chat completion.
            due: `time.perf_counter()` at which it should have been sent; None: now.
        """
        begun = time.perf_counter() if due is None else due
        seen = _LastSeen()
        try:
            async with self._http.stream("POST", CHAT, json={"model": self.target.model, **body}) as response:
                if response.status_code != 200:
                    status = str(response.status_code)
                    seen.message = (await response.aread()).decode(errors="replace")
                elif body.get("stream"):
                    async for line in response.aiter_lines():
                        seen.take(line, begun)
                    status = seen.status
                else:
                    seen.usage = json.loads(await response.aread())["usage"]
                    status = OK
        except (httpx.HTTPError, ValueError, KeyError) as error:
            status, seen.message = type(error).__name__, str(error)
        return Reply(
            status,
            begun,
            time.perf_counter() - begun,
            seen.first,
            seen.usage.get("prompt_tokens", 0),
            seen.usage.get("completion_tokens", 0),
            seen.message,
        )


class _LastSeen:
    """The state reported by the events of a stream so far."""

    def __init__(self) -> None:
        self.status = "cut off"
        self.first: float | None = None
        self.usage: dict[str, int] = {}
        self.message = ""

    def take(self, line: str, begun: float) -> None:
        if line == "data: [DONE]" and self.status == "cut off":
            self.status = OK
        if not line.startswith("data: {"):
            return
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            self.status, self.message = f"in the stream: {chunk['error'].get('type')}", str(chunk["error"])
        self.usage = chunk.get("usage") or self.usage
        if self.first is None and any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
            self.first = time.perf_counter() - begun
