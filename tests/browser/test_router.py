"""The page through the router, with two workers behind it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.reading import answered, ask, cells, masks, seek, steps, visit
from tests.running import TIMEOUT, python, started, wait_until
from tests.serving.fleets import Fleet, free_ports

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module", name="router_url")
def url_of_two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("fleet"), free_ports(3)
    places = (f"port={port}", f"worker_base_port={port + 1}", f"run_dir={folder}")
    with started(python("dlm.serve", "devices=2", "device=cpu", *places), folder) as process:
        fleet = Fleet(process, port, folder)
        wait_until(lambda: fleet.info().get("status") == "ready", "the fleet was ready", process)
        yield f"{fleet.url}/"
        process.terminate()
        process.wait(TIMEOUT)


def served(url: str) -> list[int]:
    """Requests by worker."""
    with urllib.request.urlopen(f"{url}stats", timeout=TIMEOUT) as reply:
        return [worker["requests_served"] for worker in json.load(reply)["workers"]]


def test_the_page_is_loaded_asks_and_shows_each_step(page: Page, router_url: str) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response", lambda reply: problems.append(reply.url) if reply.status >= 400 else None)
    before = served(router_url)
    visit(page, router_url)
    for _ in range(2):
        ask(page, "Sort 7 3 12.")
        expect(page.locator(".answer-text").last).to_have_text("Sorted: 3 7 12")
    left = masks(cells(page))
    assert steps(page) >= 2
    seek(page, 0)
    assert masks(cells(page)) == len(cells(page)) > left
    assert problems == []
    assert sum(served(router_url)) - sum(before) == 2


def test_the_canvas_is_drawn_while_it_is_decoded_and_stop_reaches_the_worker(page: Page, router_url: str) -> None:
    visit(page, router_url)
    page.click("#panel-toggle")
    for name in ("gen_length", "steps"):
        page.fill(f"#field-{name}", "896")
    page.select_option("#field-ignore_eos", "true")
    page.select_option("#algorithm", "basic")
    page.fill("#prompt", "Hello")
    page.press("#prompt", "Enter")
    expect(page.locator(".cell[data-level]").first).to_be_visible()
    assert masks(cells(page)) > 0
    page.click("#stop")
    answered(page)

    def running() -> int:
        with urllib.request.urlopen(f"{router_url}stats", timeout=TIMEOUT) as reply:
            return sum(worker["running"] for worker in json.load(reply)["workers"])

    wait_until(lambda: running() == 0, "the worker was told")
