"""dlm-http asked of a server that is not ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

import pytest

from dlm.demo import CHECKPOINT
from dlm.errors import RunError
from dlm.evaluation.lm_eval.asking import Settings
from dlm.evaluation.lm_eval.remote import RemoteServer
from dlm.text import TextCodec
from tests.running import TIMEOUT

CHOICE = {"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}
ANSWER = {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [CHOICE]}
MODEL = {"id": "m", "object": "model", "created": 1, "owned_by": "x"}
ESTIMATE = {"dlm": {"likelihood": {"scheme": "ar", "logprobs": [-1.0], "stderr": [0.0]}}}


class Foreign(ThreadingHTTPServer):
    """Answers every POST with `answer` and every GET with a list of one model, which has `model` too."""

    answer: dict[str, Any] = ANSWER
    model: Mapping[str, int] = MappingProxyType({"max_model_len": 64})

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def reply(self, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        assert isinstance(self.server, Foreign)
        self.reply({"object": "list", "data": [{**MODEL, **self.server.model}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Foreign)
        self.reply(self.server.answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


@pytest.fixture(name="server")
def foreign() -> Iterator[Foreign]:
    with Foreign() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(TIMEOUT)


@pytest.mark.parametrize(
    ("scheme", "answer", "what"),
    [
        ("ar", ANSWER, "an answer has no dlm.likelihood"),
        ("ar", ANSWER | ESTIMATE, "does not tell the most probable tokens"),
        ("block_causal", ANSWER | ESTIMATE, "/generation/algorithms lists none"),
    ],
)
def test_it_is_told_by_one_error(server: Foreign, scheme: str, answer: dict[str, Any], what: str) -> None:
    server.answer = answer
    url = f"http://127.0.0.1:{server.server_address[1]}"
    remote = RemoteServer(url, TextCodec.load(CHECKPOINT), Settings(scheme=scheme), model="m", max_retries=0)
    with pytest.raises(RunError, match=f"is no server of dlm .*{what}"):
        list(remote.score([((5, 6), (7,))], progress=False))


def test_one_that_does_not_say_how_long_texts_may_be_is_refused(server: Foreign) -> None:
    server.model = {}
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.raises(RunError, match=r"is no server of dlm .*max_model_len"):
        RemoteServer(url, TextCodec.load(CHECKPOINT), Settings(), max_retries=0)
