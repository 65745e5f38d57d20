"""A server that speaks the page's side of the HTTP contract and decodes nothing: it replays a scripted answer, or fails
in the way that a test asks for. Open the page on it with `python -m tests.browser.mock_server 8123`."""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dlm.serving

STATIC = Path(dlm.serving.__file__).parent / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

ANSWER = (
    "A photograph develops the way\nthis answer does: the whole of it at once, faint, and then\nsharper wherever the "
    "light was strong. Nobody writes the left edge first.\n\nWhat is certain comes early; what leans on it waits."
)


def _parameter(name: str, kind: str, default: Any, low: float | None, high: float | None, about: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": kind,
        "default": default,
        "minimum": low,
        "maximum": high,
        "choices": ["low_confidence", "random", "entropy", "margin"] if name == "remasking" else None,
        "description": about,
    }


def _algorithm(name: str, source: str, *parameters: dict[str, Any], available: bool = True) -> dict[str, Any]:
    return {
        "name": name,
        "aliases": [],
        "source": source,
        "available": available,
        "reason": None if available else "a model trained on blocks is needed",
        "parameters": list(parameters),
    }


CATALOGUE: dict[str, Any] = {
    "model": "mock-8b",
    "default": "dual_cache",
    "algorithms": [
        _algorithm(
            "dual_cache",
            "Fast-dLLM",
            _parameter("threshold", "number", 0.9, 0, 1, "Positions at least so confident are revealed."),
            _parameter("remasking", "string", "low_confidence", None, None, "What ranks positions."),
        ),
        _algorithm("basic", "LLaDA"),
        _algorithm("sdar", "SDAR", available=False),
    ],
    "parameters": [
        _parameter("max_tokens", "integer", 128, 1, 8192, "The answer is cut there."),
        _parameter("block_length", "integer", 32, 1, 8192, "Positions of a block."),
        _parameter("temperature", "number", 0.0, 0, 2, "0 takes the most probable token."),
        _parameter("ignore_eos", "boolean", False, None, None, "Decode the whole canvas."),
        _parameter("seed", "integer", None, 0, None, "Of the noise."),
    ],
}


class Mock(ThreadingHTTPServer):
    """The server and what tests set or read.

    Attributes:
        fault: `400`, `401` (until the key is `sesame`), `429`, `plain` (a router's answer in plain text), `mid_stream`
            (an error object after some steps), `lost` (the connection closes after some steps), or None.
        answer: the text that is denoised; `length` and `block_length` of its canvas.
        events: `dlm` objects to send in place of the answer's.
        pause: seconds between forwards.
        stands_after: so many forwards are told, and then nothing until the client leaves; None tells all.
        bodies: of the requests so far; `disconnects` counts clients that went away before the end.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.fault: str | None = None
        self.answer, self.length, self.block_length = ANSWER, 128, 32
        self.events: list[dict[str, Any]] = []
        self.pause = 0.0
        self.stands_after: int | None = None
        self.bodies: list[dict[str, Any]] = []
        self.disconnects = 0
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


@contextmanager
def serving(port: int = 0) -> Iterator[Mock]:
    server = Mock(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Mock

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read what the page shows, not a log."""

    def do_GET(self) -> None:
        name = "index.html" if self.path == "/" else self.path.removeprefix("/static/")
        if (STATIC / name).is_file() and "/" not in name:
            self._send(HTTPStatus.OK, (STATIC / name).read_bytes(), TYPES[Path(name).suffix])
        elif self.path == "/v1/models" and self._allowed():
            self._json(HTTPStatus.OK, {"object": "list", "data": [{"id": "mock-8b", "max_model_len": 4096}]})
        elif self.path == "/generation/algorithms" and self._allowed():
            self._json(HTTPStatus.OK, CATALOGUE)
        elif self.path in ("/v1/models", "/generation/algorithms"):
            self._refuse(401, "Give the key as a bearer token.")
        else:
            self._refuse(404, f"{self.path} is nowhere here.")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if not self._allowed():
            self._refuse(401, "Give the key as a bearer token.")
        elif self.server.fault == "400":
            self._refuse(400, "block_length=7 must be 1..4", param="block_length")
        elif self.server.fault == "429":
            self._refuse(429, "32 requests wait already.", retry_after="3")
        elif self.server.fault == "plain":
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, b"No available workers", "text/plain")
        else:
            self._stream(body)

    def _allowed(self) -> bool:
        return self.server.fault != "401" or self.headers["Authorization"] == "Bearer sesame"

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for count, chunk in enumerate(_chunks(self.server, body)):
                if self.server.fault == "lost" and count == 6:
                    return
                if self.server.fault == "mid_stream" and count == 6:
                    self._event({"error": {"message": "out of memory", "type": "server_error", "code": None}})
                    return
                self._event(chunk)
                time.sleep(self.server.pause)
                if count == self.server.stands_after:
                    self.connection.recv(1)  # comes back empty when the connection is closed
                    raise ConnectionResetError
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server.disconnects += 1

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _refuse(self, status: int, message: str, param: str | None = None, retry_after: str | None = None) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
        headers = {"Retry-After": retry_after} if retry_after else {}
        self._send(HTTPStatus(status), json.dumps({"error": error}).encode(), "application/json", headers)

    def _json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _chunks(server: Mock, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of an answer: blocks from left to right, inside a block the surest first, a few tokens a forward."""
    if server.events:
        yield from (_chunk({}, event) for event in server.events)
        return
    rng = random.Random(body["messages"][-1]["content"])
    one_by_one = body.get("generation_algorithm") == "basic"
    tokens = re.findall(r"\n| ?\w+| ?[^\w\s]", server.answer)
    used = -(-(len(tokens) + 1) // server.block_length) * server.block_length
    tokens += ["<|endoftext|>"] * (used - len(tokens))
    start = {"event": "start", "index": 0, "prompt_tokens": 17, "gen_length": server.length, "tokens": []}
    start |= {
        "block_length": server.block_length,
        "algorithm": body.get("generation_algorithm", "dual_cache"),
        "seed": 5,
    }
    yield _chunk({"role": "assistant", "content": ""}, start)
    nfe = 0
    for block in range(used // server.block_length):
        first = block * server.block_length
        order = sorted(
            range(first, first + server.block_length), key=lambda at: tokens[at].startswith("<") + rng.random()
        )
        while order:
            nfe += 1
            count = 1 if one_by_one else rng.choice((1, 1, 2, 3, 4, 6, 8))
            step, order = order[:count], order[count:]
            revealed = [[at, tokens[at], 1 - 0.97 * rng.random() ** 3] for at in step]
            event = {"event": "step", "index": 0, "step": nfe, "block": block, "revealed": revealed, "cleared": []}
            yield _chunk({}, event | {"num_blocks": -(-server.length // server.block_length)})
        text = "".join(tokens[first : first + server.block_length]).replace("<|endoftext|>", "")
        yield _chunk({"content": text})
    answered = sum(token != "<|endoftext|>" for token in tokens)
    end = {"event": "end", "nfe": nfe, "tokens_per_forward": answered / nfe, "weight_version": 0, "seed": 5}
    end |= {"algorithm": start["algorithm"], "seconds": 1.25, "tokens_per_second": answered / 1.25}
    yield _chunk({}, end, "stop")
    usage = {"prompt_tokens": 17, "completion_tokens": answered, "total_tokens": 17 + answered}
    yield {**_chunk({}), "choices": [], "usage": usage}


def _chunk(delta: dict[str, str], event: dict[str, Any] | None = None, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "mock-8b",
        "choices": [choice],
    }
    return chunk if event is None else {**chunk, "dlm": event}


if __name__ == "__main__":
    with serving(int(sys.argv[1])) as mock:
        mock.pause = 0.15
        print(mock.url)
        threading.Event().wait()
