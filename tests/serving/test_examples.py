"""The clients under launch/examples, run as a user runs them, without a key and with one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import TIMEOUT, environment
from tests.serving.server import Server, serving

EXAMPLES = Path(__file__).resolve().parents[2] / "launch" / "examples"
KEY = "k-0815"
QUESTION = "Sort 7 3 12."
CLIENTS = {
    "openai_client.py": [sys.executable, "-W", "ignore"],
    "requests_client.py": [sys.executable, "-W", "ignore"],
    "curl.sh": ["bash"],
}


@pytest.fixture(scope="module", name="locked")
def server_with_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("locked"), DLM_API_KEY=KEY) as server:
        yield server


def run(name: str, url: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [*CLIENTS[name], str(EXAMPLES / name), QUESTION]
    variables = environment(DLM_BASE_URL=f"{url}/v1", **extra)
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.parametrize("name", CLIENTS)
def test_an_example_shows_the_answer(name: str, server: Server) -> None:
    done = run(name, server.url)
    assert done.returncode == 0, done.stderr
    assert "Sorted: 3 7 12" in done.stdout


@pytest.mark.parametrize("name", CLIENTS)
def test_an_example_shows_its_key_and_hides_it(name: str, locked: Server) -> None:
    done = run(name, locked.url, DLM_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert "Sorted: 3 7 12" in done.stdout
    assert KEY not in done.stdout + done.stderr
    refused = run(name, locked.url)
    assert refused.returncode != 0
    assert "key" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("name", CLIENTS)
def test_an_example_says_where_no_server_is(name: str) -> None:
    assert os.environ.get("DLM_API_KEY") is None
    done = run(name, "http://127.0.0.1:9")
    assert done.returncode != 0
    assert "127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr
