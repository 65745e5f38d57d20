"""The page of a server with the demo checkpoint answers what the demo was trained on."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.reading import answered, ask, cells, figure, seek, visit
from tests.running import TIMEOUT, wait_until

pytestmark = pytest.mark.browser

ANSWERS = {
    "Capital of France?": r"Capital: Paris",
    "Sort 7 3 12.": r"Sorted: 3 7 12",
    "Split 17 eggs into 2.": r"Parts: \d+ \+ \d+",
}


@pytest.mark.parametrize("prompt", ANSWERS)
def test_a_question_is_answered_rightly(page: Page, real_url: str, prompt: str) -> None:
    visit(page, real_url)
    ask(page, prompt)
    text = page.locator(".answer-text").inner_text()
    assert re.fullmatch(ANSWERS[prompt], text)
    if prompt.startswith("Split"):
        assert sum(map(int, re.findall(r"\d+", text))) == 17


def test_each_example_of_the_empty_page_is_one_the_demo_can_answer(page: Page, real_url: str) -> None:
    visit(page, real_url)
    count = page.locator(".chip").count()
    assert count > 3
    for index in range(count):
        page.locator(".chip").nth(index).click()
        answered(page)
        expect(page.locator(".answer-text")).to_contain_text(
            re.compile(r"^(Grid|Words|Parts|Sorted|Reversed|Capital):")
        )
        page.click("#clear")


def test_stop_frees_the_server(page: Page, real_url: str, hold: Path) -> None:
    """The server stands still after eight forwards of many, until the page has stopped."""
    before = _stats(real_url)["total_batches_processed"]
    visit(page, real_url)
    page.click("#panel-toggle")
    page.fill("#field-gen_length", "896")
    page.fill("#field-steps", "896")
    page.select_option("#field-ignore_eos", "true")
    page.select_option("#algorithm", "basic")
    page.fill("#prompt", "Hello")
    hold.write_text(str(before + 8))
    try:
        page.press("#prompt", "Enter")
        expect(page.locator(".cell[data-level]").first).to_be_visible()
        assert _stats(real_url)["running_requests"] == 1
        page.click("#stop")
        answered(page)
    finally:
        hold.unlink()
    expect(page.locator(".caption")).to_contain_text("stopped")
    wait_until(lambda: _stats(real_url)["running_requests"] == 0, "the server was told")
    assert _stats(real_url)["total_batches_processed"] - before < 896


def _stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}batch/stats", timeout=TIMEOUT) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def test_blocks_that_begin_inside_the_prompt_are_drawn_where_they_lie(page: Page, real_url: str) -> None:
    visit(page, real_url)
    page.click("#panel-toggle")
    page.select_option("#field-align_blocks", "true")
    ask(page, "Capital of France?")
    prompt = int(figure(page, "prompt"))
    sizes = page.locator(".block").evaluate_all("(all) => all.map((one) => one.querySelectorAll('.cell').length)")
    assert sizes[0] == 32 - prompt % 32
    assert set(sizes[1:-1]) == {32}
    assert sum(sizes) == 128


def test_an_answer_that_grows_is_replayed_from_its_short_canvas(page: Page, real_url: str) -> None:
    visit(page, real_url)
    page.click("#panel-toggle")
    for name, value in (("initial_gen_length", "4"), ("block_length", "4"), ("eos_check_tokens", "2")):
        page.fill(f"#field-{name}", value)
    ask(page, "Name one drink 9 times.")
    page.get_by_text("Text", exact=True).click()
    text = page.locator(".lane .cell:not(.mask):not(.end)").all_text_contents()
    assert "".join(text).replace("·", " ") == page.locator(".answer-text").inner_text()
    assert len(cells(page)) > 4
    seek(page, 0)
    expect(page.locator(".lane .cell:visible")).to_have_count(4)
