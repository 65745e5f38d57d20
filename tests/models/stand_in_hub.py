"""A hub on loopback with one repository: the routes that fetching a snapshot needs, and refusals on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TAG = "v1.0"


@dataclass
class Hub:
    """What the hub serves and what it was asked.

    Attributes:
        repo, folder: the repository and the files in it.
        refusals: how many requests to each path are answered 429 before it is served.
        retry_after: the header of those answers; None leaves it out.
        asked: method and path of each request, with its answer.
        tokens: values of the header Authorization.
    """

    repo: str
    folder: Path
    refusals: int = 0
    retry_after: int | None = None
    endpoint: str = ""
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def served(self) -> set[str]:
        """Names of files whose content was given out."""
        return {path.rpartition("/")[2] for method, path, code in self.asked if (method, code) == ("GET", 200)}

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers for a path."""
        revision = f"({COMMIT}|{TAG})"
        if re.fullmatch(rf"/api/models/{self.repo}/revision/{revision}", path):
            return 200, json.dumps({"id": self.repo, "sha": COMMIT, "siblings": []}).encode(), {}
        if re.fullmatch(rf"/api/models/{self.repo}/tree/{revision}", path):
            return 200, json.dumps([self._entry(file) for file in sorted(self.folder.iterdir())]).encode(), {}
        matched = re.fullmatch(rf"/{self.repo}/resolve/{revision}/([\w.-]+)", path)
        if matched and (self.folder / matched[2]).is_file():
            body = (self.folder / matched[2]).read_bytes()
            return 200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        return 404, b"{}", {"X-Error-Code": "RevisionNotFound" if self.repo in path else "RepoNotFound"}

    def _entry(self, file: Path) -> dict[str, Any]:
        body = file.read_bytes()
        return {"type": "file", "path": file.name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """`hub` at `hub.endpoint` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status, body, headers = hub.answer(path)
            with hub.lock:
                hub.tokens.add(self.headers.get("Authorization"))
                if hub.refused[path] < hub.refusals:
                    hub.refused[path] += 1
                    status, body = 429, b"{}"
                    headers = {} if hub.retry_after is None else {"Retry-After": str(hub.retry_after)}
                hub.asked.append((self.command, path, status))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on stderr: the test reads `asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
