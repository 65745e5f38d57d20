"""Debian's chromium, the page of the mock server, and the page of a real server with the demo checkpoint."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.mock_server import Mock, serving
from tests.running import TIMEOUT, environment, wait_until
from tests.serving.held_server import HOLD

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
expect.set_options(timeout=1000 * TIMEOUT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for a file: playwright's event loop runs in this thread for as long as there is one."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the path: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def mock() -> Iterator[Mock]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that makes the real server's forwards stand still."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="session")
def real_url(tmp_path_factory: pytest.TempPathFactory, hold: Path) -> Iterator[str]:
    """A server of the demo checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "tests.serving.held_server", "device=cpu", f"port={port}"]
    place, surroundings = Path(__file__).parents[2], {**environment(), HOLD: str(hold)}
    with (
        log.open("w") as out,
        subprocess.Popen(command, cwd=place, env=surroundings, stdout=out, stderr=out) as process,
    ):
        try:
            wait_until(lambda: _ready(port) or process.poll() is not None, "the server was ready")
            assert process.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            try:
                process.wait(TIMEOUT)
            finally:
                process.kill()


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=TIMEOUT) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(params=["mock", "real"])
def site(request: pytest.FixtureRequest) -> str:
    """The page's address, once on each server."""
    if request.param == "mock":
        return str(request.getfixturevalue("mock").url)
    return str(request.getfixturevalue("real_url"))


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A wide window in which nothing moves: a replay is at its end at once."""
    opened = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    opened.set_default_timeout(1000 * TIMEOUT)
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()
