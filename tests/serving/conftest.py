"""One server of the demo for the tests that only ask."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from unittest import mock

import httpx
import openai
import pytest

from tests.running import TIMEOUT
from tests.serving.server import Server, serving


@pytest.fixture(scope="session", autouse=True)
def _patient_clients() -> Iterator[None]:
    """A client that names no timeout waits as long as a test may hang; httpx gives up after five seconds, which a busy
    machine may take for any answer."""
    with ExitStack() as stack:
        for call in (httpx.request, httpx.stream, httpx.get, httpx.post, httpx.Client.__init__):
            stack.enter_context(mock.patch.dict(inspect.unwrap(call).__kwdefaults__, timeout=TIMEOUT))
        yield


@pytest.fixture(scope="session", name="server")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "batch_size=16") as server:
        yield server


@pytest.fixture(scope="session", name="client")
def openai_client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
