"""A server of canned answers, for the load tool."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = (
    '{"choices": [{"delta": {"role": "assistant", "content": ""}}]}',
    '{"choices": [{"delta": {"content": "a"}}]}',
    '{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}',
    "[DONE]",
)
"""The events of a whole answer."""


class StandIn(ThreadingHTTPServer):
    """A server of canned answers.

    Args:
        status: of chat completions.
        events: of those that are streamed.
        key: what `Authorization` must be.

    Attributes:
        url: where it listens.
        seen: bodies of chat completions.
    """

    daemon_threads = True

    def __init__(self, status: int = 200, *, events: Sequence[str] = (), key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.events, self.key = status, events, key
        self.seen: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str) -> dict[str, Any] | None:
        """What a GET is answered with; each request counts as two forwards, of one and of three canvases."""
        size = len(self.seen)
        answers: dict[str, dict[str, Any]] = {
            "/health": {},
            "/v1/models": {"data": [{"id": "stand-in"}]},
            "/generation/algorithms": {
                "algorithms": [{"name": "basic", "available": True}, {"name": "sdar", "available": False}]
            },
            "/stats": {"workers": [{"url": "http://127.0.0.1:1"}]},
            "/batch/stats": {"batch_size_histogram": {"1": size, "3": size}},
        }
        return answers.get(path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StandIn

    def log_message(self, *_: Any) -> None:
        """Nothing is said."""

    def do_GET(self) -> None:
        if self.path != "/health" and self.server.key not in (None, self.headers.get("Authorization")):
            self._send(401, {})
        else:
            self._send(200, self.server.answer(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        if self.server.status == 200 and body.get("stream"):
            text = "".join(f"data: {event}\n\n" for event in self.server.events).encode()
            self._send(200, text)
        else:
            self._send(self.server.status, {"usage": {"prompt_tokens": 5, "completion_tokens": 7}})

    def _send(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
