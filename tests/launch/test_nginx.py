"""nginx as the router: its configuration fits the server's, and it does what its comments say."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import crossplane
import pytest

from dlm.cli.command_line import compose_config
from dlm.distributed.processes import free_port
from dlm.serving.config import register
from tests.launch.cluster import LAUNCH
from tests.running import TIMEOUT, wait_until

CONF = LAUNCH / "nginx.conf"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def directives(blocks: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Names and arguments of all directives, those in blocks after the block."""
    for one in blocks:
        yield one["directive"], one["args"]
        yield from directives(one.get("block", []))


@pytest.fixture(scope="module")
def conf() -> list[tuple[str, list[str]]]:
    found = crossplane.parse(str(CONF), strict=True)
    assert found["errors"] == []
    return list(directives(found["config"][0]["parsed"]))


def test_it_parses_and_what_it_passes_to_is_declared(conf: list[tuple[str, list[str]]]) -> None:
    declared = [arguments[0] for name, arguments in conf if name == "upstream"]
    assert [arguments for name, arguments in conf if name == "proxy_pass"] == [[f"http://{one}"] for one in declared]


def test_limits_and_ports_are_those_of_the_server(conf: list[tuple[str, list[str]]]) -> None:
    register()
    arguments = (
        next(line for line in CONF.read_text().splitlines() if "dlm.serve" in line).split("dlm.serve ")[1].split()
    )
    served, said = compose_config("serve", arguments), dict(conf)
    ports = [f"127.0.0.1:{served.worker_base_port + index}" for index in range(served.devices)]
    assert [one[0] for name, one in conf if name == "server" and one] == ports
    assert said["listen"] == [f"127.0.0.1:{served.port}"]
    assert float(said["client_max_body_size"][0].removesuffix("m")) > served.max_body_mib
    assert float(said["proxy_read_timeout"][0].removesuffix("s")) > served.request_timeout


class Worker(ThreadingHTTPServer):
    """Notes what it is asked; `GET /stream` goes on when it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str | None]] = []
        self.go_on = threading.Event()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Worker

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        self.wfile.flush()
        if self.path == "/stream":
            self.server.go_on.wait()
        self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def running(folder: Path) -> Iterator[tuple[int, list[Worker]]]:
    """nginx with the configuration, on ports of this test; its port, and two workers behind it."""
    workers, port = [Worker(), Worker()], free_port()
    text = CONF.read_text().replace("/tmp/", f"{folder}/").replace("listen 127.0.0.1:8000", f"listen 127.0.0.1:{port}")
    for worker, known in zip(workers, (8001, 8002), strict=True):
        text = text.replace(f"server 127.0.0.1:{known}", f"server 127.0.0.1:{worker.server_port}")
        threading.Thread(target=worker.serve_forever, daemon=True).start()
    (folder / "nginx.conf").write_text(text)
    assert NGINX is not None
    command = [NGINX, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: (folder / "dlm-nginx.pid").exists(), "nginx runs", process)
            yield port, workers
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=TIMEOUT)
            for worker in workers:
                worker.shutdown()
                worker.server_close()


@contextmanager
def asking(port: int, path: str) -> Iterator[http.client.HTTPResponse]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
        connection.request("GET", path, headers={"Authorization": "Bearer key"})
        with connection.getresponse() as response:
            yield response


def ask(port: int, path: str) -> tuple[int, bytes]:
    with asking(port, path) as response:
        return response.status, response.read()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_requests_are_shared_out_with_their_keys_and_streams_are_not_held_back(tmp_path: Path) -> None:
    with running(tmp_path) as (port, workers):
        for _ in range(4):
            assert ask(port, "/v1/models") == (200, b"firstlast")
        assert all(worker.asked for worker in workers)
        assert {key for worker in workers for _, key in worker.asked} == {"Bearer key"}
        assert ask(port, "/metrics")[0] == 404
        with asking(port, "/stream") as stream:
            assert stream.read(5) == b"first", "before the worker has said the rest"
            for worker in workers:
                worker.go_on.set()
            assert stream.read() == b"last"


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_worker_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    with running(tmp_path) as (port, workers):
        workers[0].shutdown()
        workers[0].server_close()
        assert [ask(port, "/v1/models")[0] for _ in range(4)] == [200] * 4
        assert len(workers[1].asked) == 4
