"""What the router does to requests: found out with the real router and a worker that writes down what it gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from dlm.serving.engine.service import INJECTED
from dlm.serving.fleet.processes import answers
from dlm.serving.schemas.requests import SAMPLING, ChatRequest, CompletionRequest
from dlm.serving.schemas.unsupported_params import refuse_foreign
from dlm.serving.settings import FleetSettings
from tests.running import TIMEOUT, wait_until
from tests.serving.fleets import free_ports

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
WISHES = {"stop": ["a"], "seed": 2**63 - 1, "ignore_eos": True, "dlm_events": True, "whatever": {"a": [1.5, None]}}


EVENTS = 5
"""Of a stream."""


class StandIn(ThreadingHTTPServer):
    """A worker that is always well and writes bodies down; an event of a stream follows when the one before has been
    heard of."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Recorder)
        self.bodies: list[dict[str, Any]] = []
        self.heard = threading.Semaphore(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Recorder(BaseHTTPRequestHandler):
    """One connection of `StandIn`."""

    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.bodies[-1].get("stream"):
            self.stream()
        else:
            self.answer()

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(EVENTS):
            self.wfile.write(b"data: %d\n\n" % number)
            assert self.server.heard.acquire(timeout=TIMEOUT)

    def answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@contextmanager
def routed(workers: list[str], folder: Path) -> Iterator[str]:
    """The router that a fleet starts, in front of `workers`; yields its URL."""
    port = free_ports(2)
    settings = FleetSettings(
        router="only", devices=0, peers=tuple(workers), first_worker=0, start_timeout=60.0, gpu_ids=(),
        host="127.0.0.1", port=port, worker_base_port=0, policy="round_robin", health_check_interval=1.0,
        request_timeout=60.0, max_body_mib=4.0, header_timeout=20.0, cors_origins=(), model="demo", run_dir=str(folder),
    )  # fmt: skip
    program = shutil.which("vllm-router", path=str(Path(sys.executable).parent)) or "vllm-router"
    command = settings.router_command(program, port, port + 1)
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: answers(f"{settings.url}/health"), "the router answered")
            yield settings.url
        finally:
            process.kill()


@pytest.fixture(scope="module", name="worker")
def standing_in() -> Iterator[StandIn]:
    with StandIn() as worker:
        thread = threading.Thread(target=worker.serve_forever, daemon=True)
        thread.start()
        yield worker
        worker.shutdown()
        thread.join(TIMEOUT)


@pytest.fixture(scope="module", name="url")
def router_url(worker: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with routed([worker.url], tmp_path_factory.mktemp("router")) as url:
        yield url


def added(worker: StandIn, url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Keys that the worker got and the client did not send; what the client sent arrives as it was."""
    worker.bodies.clear()
    httpx.post(url + path, json=body).raise_for_status()
    [got] = worker.bodies
    assert {key: got[key] for key in body} == body
    return {key: value for key, value in got.items() if key not in body}


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [("/v1/chat/completions", ChatRequest, CHAT), ("/v1/completions", CompletionRequest, {"prompt": "Hi"})],
)
def test_of_the_keys_that_the_router_adds_those_that_decode_are_known(
    worker: StandIn, url: str, path: str, kind: Any, body: dict[str, Any]
) -> None:
    found = added(worker, url, path, body)
    print(f"\n{path}: {found}")
    assert {(key, value) for key, value in found.items() if key in SAMPLING and value is not None} == set(INJECTED)
    refuse_foreign(found)
    others = {key for key in found if key in kind.model_fields and key not in SAMPLING}
    assert others <= {"stream", "echo", "logprobs"}
    assert not any(found[key] for key in others)  # what they are where a client says nothing


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": [[1, 2]]})])
def test_what_a_client_says_arrives_as_it_was(worker: StandIn, url: str, path: str, body: dict[str, Any]) -> None:
    assert "ignore_eos" not in added(worker, url, path, {**body, **WISHES})


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/generate", {"prompt": "Hi"}), ("/v1/generate_batch", {"prompts": ["Hi"]})]
)
def test_submitted_requests_are_passed_on_untouched(worker: StandIn, url: str, path: str, body: dict[str, Any]) -> None:
    assert added(worker, url, path, body) == {}


def test_each_event_of_a_stream_is_passed_on_before_the_next_is_made(worker: StandIn, url: str) -> None:
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        for number, line in enumerate(line for line in answer.iter_lines() if line):
            assert line == f"data: {number}"
            worker.heard.release()
    assert number == EVENTS - 1
