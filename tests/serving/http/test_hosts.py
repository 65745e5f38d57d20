"""Without a key a server on loopback answers to names of its own machine alone; so does the gate of a fleet."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from dlm.serving.fleet.gate import Gate
from dlm.serving.fleet.processes import bind
from dlm.serving.http.hosts import OwnNames, own_names
from dlm.serving.settings import KEY_VARIABLE, FleetSettings
from tests.running import TIMEOUT
from tests.serving.server import Server

OWN = (
    "localhost", "LocalHost:80", "localhost.", "127.0.0.1", "127.0.0.1:8000", "127.255.3.4:1", "[::1]", "[::1]:8000",
    "own.example:9", "[0:0:0:0:0:0:0:1]",
)  # fmt: skip
FOREIGN = (
    "evil.example", "evil.example:8000", "localhost.evil.example", "evil@127.0.0.1", "127.0.0.1.evil.example", "",
    "0.0.0.0", "10.0.0.1", "[::]", "[fe80::1]:80", "::1", "127.0.0.1:8000:1", "127.0.0.1 evil", "[", "]", "[::1", "a]",
    "127.0.0.1#", "127.0.0.1/", "localhost:x", "\xff", "a" * 5000,
)  # fmt: skip


async def nothing(*_: object) -> None:
    """An application."""


@pytest.mark.parametrize(("names", "is_own"), [(OWN, True), (FOREIGN, False)])
def test_names_are_told_apart(names: tuple[str, ...], is_own: bool) -> None:
    guard = OwnNames(nothing, "own.example")
    assert {name: guard.is_own(name) for name in names} == dict.fromkeys(names, is_own)


@pytest.mark.parametrize(
    ("host", "key", "guarded"),
    [
        ("127.0.0.1", None, True),
        ("127.3.2.1", None, True),
        ("localhost", None, True),
        ("::1", None, True),
        ("127.0.0.1", "key", False),
        ("0.0.0.0", None, False),
        ("::", None, False),
        ("10.1.2.3", None, False),
    ],
)
def test_only_a_server_on_loopback_without_a_key_looks(host: str, key: str | None, guarded: bool) -> None:
    assert bool(own_names(host, key)) == guarded


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/static/app.js", "/nothing"])
def test_a_foreign_name_is_refused_on_every_path(server: Server, path: str) -> None:
    answer = httpx.get(server.url + path, headers={"Host": "evil.example"})
    assert answer.status_code == 403
    found = answer.json()["error"]
    assert (found["type"], found["code"]) == ("permission_error", "foreign_host")
    assert "'evil.example'" in found["message"]
    assert KEY_VARIABLE in found["message"]
    assert httpx.get(server.url + path, headers={"Host": "[::1]:1"}).status_code in (200, 404)


def test_a_request_without_a_name_is_answered(server: Server) -> None:
    url = httpx.URL(server.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=TIMEOUT)
    connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]  # as old probes are
    connection.putrequest("GET", "/health", skip_host=True)
    connection.endheaders()
    assert connection.getresponse().status == 200
    connection.close()


@contextmanager
def gate(folder: Path, host: str = "127.0.0.1") -> Iterator[http.client.HTTPConnection]:
    """A connection to a gate behind which nobody is ready; it is not made again when it is closed."""
    listening = bind("127.0.0.1", 0)
    settings = FleetSettings(
        router="only", devices=0, peers=(), first_worker=0, start_timeout=60.0, gpu_ids=(), host=host, port=1,
        worker_base_port=0, policy="round_robin", health_check_interval=1.0, request_timeout=60.0, max_body_mib=4.0,
        header_timeout=20.0, cors_origins=(), model="demo", run_dir=str(folder),
    )  # fmt: skip
    opened = Gate(listening, "http://127.0.0.1:1", lambda: ["http://127.0.0.1:1"], settings)
    opened.open()
    connection = http.client.HTTPConnection(*listening.getsockname(), timeout=TIMEOUT)
    connection.connect()
    connection.auto_open = 0
    try:
        yield connection
    finally:
        connection.close()
        opened.close()


def asked(connection: http.client.HTTPConnection, method: str, path: str, host: str) -> tuple[int, dict[str, object]]:
    """Status and error of an answer."""
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())["error"]


def test_the_gate_looks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with gate(tmp_path) as connection:
        assert asked(connection, "GET", "/health", "evil.example")[1]["code"] == "foreign_host"
        assert asked(connection, "GET", "/health", "localhost")[1]["code"] == "worker_lost"
    with gate(tmp_path, "0.0.0.0") as connection:
        assert asked(connection, "GET", "/health", "evil.example")[1]["code"] == "worker_lost"
    monkeypatch.setenv(KEY_VARIABLE, "key")
    with gate(tmp_path) as connection:
        assert asked(connection, "GET", "/health", "evil.example")[1]["code"] == "worker_lost"


def test_a_path_that_is_none_is_refused_by_the_gate_and_the_connection_lives(tmp_path: Path) -> None:
    with gate(tmp_path, "0.0.0.0") as connection:
        for path in ("/v1/models#x", "/#", "/a" * 30_000 + "#", "/x?a#b"):
            status, error = asked(connection, "GET", path, "[")
            assert status == 400, error
            assert "is not a valid URL path" in str(error["message"])
        for method, path, wanted in (("GET", "http://evil.example/x", 404), ("BREW", "/health", 405)):
            status, error = asked(connection, method, path, "[")
            assert status == wanted, error
        assert asked(connection, "GET", "/[]|^`{}\\", "a")[0] in (400, 502)
