"""As much of W&B's server as lets a run begin, until it goes away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = {
    "viewer": {"id": "u", "entity": "e", "username": "u", "email": "u@e.org", "flags": "{}", "teams": {"edges": []}},
    "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []},
    "upsertBucket": {
        "bucket": {
            "id": "b", "name": "r", "displayName": "r", "description": "", "config": "{}", "sweepName": None,
            "historyLineCount": 0, "project": {"id": "p", "name": "dlm", "entity": {"id": "e", "name": "e"}},
        },
        "inserted": True,
    },
}  # fmt: skip
"""What the queries at the start of a run want to know, all at once."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"data": ANSWER} if self.path == "/graphql" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.path != "/graphql":
            self.server.streamed.set()  # type: ignore[attr-defined]  # ours, see `standing_in`

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class StandIn:
    """The server, while it is there.

    Attributes:
        url: its address.
        streamed: set once a run has sent figures.
    """

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.streamed = threading.Event()
        server.streamed = self.streamed  # type: ignore[attr-defined]  # for the handler

    def go_away(self) -> None:
        """Answer nobody any more; calling it again changes nothing."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def standing_in() -> Iterator[StandIn]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    stand_in = StandIn(server)
    thread.start()
    try:
        yield stand_in
    finally:
        stand_in.go_away()
        thread.join()
