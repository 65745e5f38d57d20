"""The page of `trace=html`, opened from the disk: it shows, replays and lets choose, and asks nobody for anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from dlm.cli.command_line import compose_config
from dlm.predict import run as predict
from tests.browser.reading import cells, figure, masks, seek, steps
from tests.running import rows_of

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced") / "run"
    overrides = ("trace=html", "data.limit=3", f"run_dir={folder}")
    assert predict(compose_config("predict", overrides), overrides) == 0
    return folder


def test_it_shows_and_replays_every_answer(page: Page, run_dir: Path) -> None:
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((run_dir / "trace.html").as_uri())
    rows = rows_of(run_dir / "predictions.jsonl")
    expect(page.locator(".turn")).to_have_count(len(rows))
    for number, row in enumerate(rows):
        turn = page.locator(".turn").nth(number)
        turn.locator(".caption").click()
        assert turn.locator(".asked").inner_text().endswith(row["prompt"])
        assert turn.locator(".answer-text").inner_text() == row["text"]
        revealed = sum(step > 0 for step in row["step_map"])
        assert (steps(page), int(figure(page, "forwards"))) == (row["nfe"], row["nfe"])
        assert len(cells(page)) - masks(cells(page)) == revealed
        assert page.locator(".lane .cell[data-level]").count() == revealed
        seek(page, 1)
        assert len(cells(page)) - masks(cells(page)) == row["step_map"].count(1)
        seek(page, 0)
        assert masks(cells(page)) == len(row["canvas_ids"])
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [(run_dir / "trace.html").as_uri()]


@pytest.mark.parametrize("width", [390, 1440])
def test_it_fits_the_screen(browser: Browser, run_dir: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, reduced_motion="reduce")
    page.goto((run_dir / "trace.html").as_uri())
    expect(page.locator(".lane")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    page.close()
