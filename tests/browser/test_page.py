"""The page against the mock and against a real server: what every server that keeps the contract must show."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.reading import answered, ask, cells, figure, masks, seek, sent, steps, visit

pytestmark = pytest.mark.browser

SPLIT = "Split 17 eggs into 2."


def test_nothing_but_the_page_s_own_host_is_asked_and_nothing_is_complained_of(page: Page, site: str) -> None:
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    visit(page, site)
    ask(page, SPLIT)
    assert complaints == []
    assert len(asked) > 5
    assert all(url.startswith(site) for url in asked)


def test_an_answer_fills_the_canvas_and_the_figures(page: Page, site: str) -> None:
    visit(page, site)
    ask(page, SPLIT)
    assert page.locator(".answer-text").inner_text()
    labels = cells(page)
    last = steps(page)
    assert masks(labels) < len(labels)
    assert page.locator(".lane .cell[data-level]").count() == len(labels) - masks(labels)
    expect(page.locator("#counter")).to_have_text(f"step {last} of {last}")
    assert int(figure(page, "forwards")) == last
    answer, per_forward = int(figure(page, "answer")), float(figure(page, "tokens per forward"))
    assert per_forward == pytest.approx(answer / last, abs=0.006)
    assert float(figure(page, "tokens/s")) > 0
    assert float(figure(page, "seconds")) > 0
    assert int(figure(page, "prompt")) > 0
    assert figure(page, "seed").isdigit()


def test_the_canvas_spells_the_answer(page: Page, site: str) -> None:
    visit(page, site)
    ask(page, SPLIT)
    words = page.locator(".answer-text").inner_text().split()
    page.get_by_text("Text", exact=True).click()
    shown = page.locator(".lane .cell:not(.mask):not(.end)").evaluate_all(
        "(cells) => cells.map((cell) => cell.textContent).join('')"
    )
    assert shown.replace("·", " ").replace("⏎", "\n").split() == words


def test_a_replay_goes_from_the_masks_to_the_answer_and_back(page: Page, site: str) -> None:
    visit(page, site)
    page.select_option("#algorithm", "basic")
    ask(page, SPLIT)
    end, last = cells(page), steps(page)
    assert last > 3
    open_masks = []
    for step in range(last + 1):
        seek(page, step)
        expect(page.locator("#counter")).to_have_text(f"step {step} of {last}")
        open_masks.append(masks(cells(page)))
    assert open_masks[0] == len(end)
    assert open_masks == sorted(open_masks, reverse=True)
    assert cells(page) == end
    for step in (last // 2, 0, last):
        seek(page, step)
        assert masks(cells(page)) == open_masks[step]
    assert cells(page) == end


def test_a_step_marks_what_it_revealed_and_the_block_it_worked_on(page: Page, site: str) -> None:
    visit(page, site)
    page.select_option("#algorithm", "basic")
    ask(page, SPLIT)
    before = -1
    for step in (1, 2):
        seek(page, step)
        fresh = page.locator(".cell.fresh")
        assert fresh.count() > 0
        assert all(f"step {step}" in label for label in fresh.evaluate_all("(all) => all.map((one) => one.ariaLabel)"))
        revealed = len(cells(page)) - masks(cells(page))
        assert revealed > before
        before = revealed
    expect(page.locator(".block[data-state=active]")).to_have_count(1)
    seek(page, steps(page))
    expect(page.locator(".block[data-state=active]")).to_have_count(0)


def test_only_what_was_set_is_sent(page: Page, site: str) -> None:
    bodies = sent(page)
    visit(page, site)
    ask(page, SPLIT)
    always = {"model", "messages", "stream", "stream_options", "dlm_events"}
    assert set(bodies[-1]) == always
    page.click("#panel-toggle")
    page.fill("#field-block_length", "8")
    page.fill("#field-temperature", "0")
    page.select_option("#field-ignore_eos", "true")
    page.select_option("#algorithm", "basic")
    ask(page, SPLIT)
    extra = {"block_length": 8, "temperature": 0, "ignore_eos": True, "generation_algorithm": "basic"}
    assert {key: value for key, value in bodies[-1].items() if key not in always} == extra
    page.click("#panel-reset")
    page.fill("#field-seed", "")
    ask(page, SPLIT)
    assert set(bodies[-1]) == always | {"generation_algorithm"}


def test_every_algorithm_that_is_offered_answers(page: Page, site: str) -> None:
    visit(page, site)
    names = page.locator("#algorithm option:not(:disabled)").evaluate_all("(all) => all.map((one) => one.value)")
    assert len(names) > 2
    for name in names[1:]:
        page.select_option("#algorithm", name)
        ask(page, SPLIT)
        expect(page.locator(".lane-title")).to_have_text(name)
        assert page.locator(".problem-box:visible").count() == 0
        assert masks(cells(page)) < len(cells(page))


def test_two_algorithms_stand_side_by_side(page: Page, site: str) -> None:
    visit(page, site)
    page.select_option("#algorithm", "dual_cache")
    page.select_option("#compare", "basic")
    ask(page, SPLIT)
    expect(page.locator(".lane-title")).to_have_text(["dual_cache", "basic"])
    first, second = (int(figure(page, "forwards", lane)) for lane in (0, 1))
    assert steps(page) == max(first, second)
    left, right = (page.locator(".lane").nth(lane).bounding_box() for lane in (0, 1))
    assert left
    assert right
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


def test_the_keyboard_is_enough(page: Page, site: str) -> None:
    visit(page, site)
    page.focus("#prompt")
    page.keyboard.type("Split 17 eggs")
    page.keyboard.press("Shift+Enter")
    assert page.input_value("#prompt") == "Split 17 eggs\n"
    page.keyboard.press("Backspace")
    page.keyboard.type(" into 2.")
    page.keyboard.press("Enter")
    answered(page)
    expect(page.locator("#prompt")).to_be_focused()
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.className"))
        if reached[-1] == "speed":
            break
    for name in ("algorithm", "compare", "play", "slider", "speed"):
        assert name in reached
    assert sum(name.startswith("cell") for name in reached) == 1
    page.focus("#slider")
    page.keyboard.press("Home")
    expect(page.locator("#counter")).to_have_text(f"step 0 of {steps(page)}")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#counter")).to_have_text(f"step 1 of {steps(page)}")
    page.focus('.cell[tabindex="0"]')
    page.keyboard.press("ArrowRight")
    expect(page.locator(".cell:focus")).to_have_attribute("data-position", "1")
    expect(page.locator(".tip")).to_contain_text("position 2")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".cell:focus")).to_have_attribute("data-position", "9")
    page.keyboard.press("End")
    expect(page.locator(".cell:focus")).to_have_attribute("data-position", str(len(cells(page)) - 1))


def test_an_example_is_one_press_away_and_a_new_chat_brings_them_back(page: Page, site: str) -> None:
    visit(page, site)
    page.locator(".chip").first.click()
    answered(page)
    expect(page.locator("#welcome")).to_be_hidden()
    page.click("#clear")
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator(".turn")).to_have_count(0)


def test_earlier_answers_can_be_looked_at_again(page: Page, site: str) -> None:
    visit(page, site)
    page.select_option("#algorithm", "basic")
    ask(page, SPLIT)
    first = cells(page)
    page.select_option("#algorithm", "dual_cache")
    ask(page, "Sort 7 3 12.")
    assert cells(page) != first
    page.locator(".caption").first.click()
    expect(page.locator(".caption").first).to_have_attribute("aria-pressed", "true")
    assert cells(page) == first
