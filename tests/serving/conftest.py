"""One server of the demo for the tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.serving.server import Server, serving


@pytest.fixture(scope="session", name="server")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "batch_size=16") as server:
        yield server


@pytest.fixture(scope="session", name="client")
def openai_client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
