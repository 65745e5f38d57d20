"""Bytes that no well-behaved client sends: paths out of the page's folder, line ends in headers, broken heads."""

from __future__ import annotations

import socket

import httpx
import pytest

from tests.running import TIMEOUT
from tests.serving.server import Server


def raw(server: Server, head: bytes) -> tuple[bytes, bytes]:
    """Head and body of what is answered to a request that is sent as it is."""
    url = httpx.URL(server.url)
    parts = []
    with socket.create_connection((url.host, url.port or 0)) as client:
        client.settimeout(TIMEOUT)
        client.sendall(head)
        while part := client.recv(65536):
            parts.append(part)
    answered, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return answered, body


def shown(sent: bytes) -> str:
    """The beginning, as the name of a test."""
    return repr(sent[:40])


def get(path: bytes, *headers: bytes) -> bytes:
    lines = (b"GET " + path + b" HTTP/1.1", b"Host: localhost", b"Connection: close", *headers, b"", b"")
    return b"\r\n".join(lines)


@pytest.mark.parametrize(
    "path",
    [
        b"/static/../app.py",
        b"/static/../../../../../../etc/passwd",
        b"/static/%2e%2e/app.py",
        b"/static/..%2fapp.py",
        b"/static/%2e%2e%2fapp.py",
        b"/static/%252e%252e%252fapp.py",
        b"/static/..\\app.py",
        b"/static/..%5capp.py",
        b"/static/....//app.py",
        b"/static//etc/passwd",
        b"/static/%2fetc%2fpasswd",
        b"/static/app.js%00.py",
        b"/static/%00",
        b"/static/" + b"a" * 5000,
        b"/static/",
        b"/static",
        b"/../dlm/serving/app.py",
        b"//etc/passwd",
    ],
    ids=shown,
)
def test_no_path_leads_out_of_the_page_s_folder(server: Server, path: bytes) -> None:
    answered, body = raw(server, get(path))
    assert answered.split()[1] in (b"404", b"307", b"400"), answered
    assert b"root:" not in body
    assert b"import" not in body
    assert b"Traceback" not in body


def test_the_page_s_own_files_are_there(server: Server) -> None:
    answered, body = raw(server, get(b"/static/app.js"))
    assert answered.split()[1] == b"200"
    assert b"import" in body


@pytest.mark.parametrize(
    "request_id",
    [b"a\rX-Evil: 1", b"a\nX-Evil: 1", b"a\n X-Evil: 1", b"a\r\n X-Evil: 1", b"a%0d%0aX-Evil: 1", b"a\x0bb", b"a\xffb"],
)
def test_a_request_id_puts_nothing_into_the_answer_s_head(server: Server, request_id: bytes) -> None:
    answered, _ = raw(server, get(b"/health", b"X-Request-Id: " + request_id))
    assert b"evil" not in answered.lower()
    assert answered.split()[1] in (b"200", b"400")
    assert not any(line.startswith(("X-Evil", " X-Evil")) for line in server.lines)


@pytest.mark.parametrize("path", [b"/v1/models/a%0d%0aX-Evil:%201", b"/%0d%0aX-Evil:%201", b"/v1/a%0d%0aX-Evil:%201"])
def test_a_path_puts_nothing_into_the_answer_s_head_or_the_log(server: Server, path: bytes) -> None:
    answered, body = raw(server, get(path))
    assert answered.split()[1] == b"404"
    assert b"x-evil" not in answered.lower()
    assert b"\nX-Evil" not in body
    assert not any("X-Evil" in line for line in server.lines)


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=shown,
)
def test_a_broken_head_is_refused_and_the_next_client_served(server: Server, head: bytes) -> None:
    try:
        answered, body = raw(server, head)
    except ConnectionResetError:
        answered, body = b"", b""
    assert answered == b"" or answered.split()[1] in (b"400", b"431"), answered
    assert b"Traceback" not in body
    assert httpx.get(f"{server.url}/health").status_code == 200
