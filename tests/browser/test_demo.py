"""The page of a server with the demo checkpoint answers what the demo was trained on."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.reading import answered, ask, visit

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
        expect(page.locator(".answer-text")).to_contain_text(re.compile(r"^(Grid|Words|Parts|Sorted|Reversed|Capital):"))
        page.click("#clear")
