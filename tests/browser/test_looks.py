"""Sizes, themes, motion and speed of the page."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.mock_server import Mock
from tests.browser.reading import ask, cells, masks, steps, visit

pytestmark = pytest.mark.browser

SCREENS = {"narrow": (360, 740), "phone": (390, 844), "tablet": (820, 1180), "laptop": (1280, 720)}

CONTRASTS = """(cells) => {
  const pixel = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const light = (colour) => {
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return cells.map((cell, level) => {
    cell.className = 'cell';
    cell.dataset.level = level;
    const style = getComputedStyle(cell);
    const [ink, ground] = [light(style.color), light(style.backgroundColor)];
    return [(Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05), ground];
  });
}"""


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_is_wider_than_the_screen(browser: Browser, mock: Mock, screen: str) -> None:
    width, height = SCREENS[screen]
    page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
    visit(page, mock.url)
    for _ in range(2):
        assert page.evaluate("() => document.documentElement.scrollWidth") == width
        ask(page, "Hello")
    page.click("#panel-toggle")
    box = page.locator("#panel").bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    page.close()


def test_on_a_phone_replay_and_composer_stay_in_reach(browser: Browser, mock: Mock) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    visit(page, mock.url)
    ask(page, "Hello")
    for _ in range(3):
        for name in ("#slider", "#play", "#prompt", "#algorithm"):
            expect(page.locator(name)).to_be_in_viewport(ratio=1)
        page.mouse.wheel(0, 400)
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tokens_are_readable_on_each_colour_and_the_scale_grows_darker(page: Page, mock: Mock, theme: str) -> None:
    page.emulate_media(color_scheme=theme)
    visit(page, mock.url)
    found = page.locator(".ghost .cell").evaluate_all(f"(all) => ({CONTRASTS})(all.slice(0, 10))")
    assert min(contrast for contrast, _ in found) >= 4.5
    grounds = [ground for _, ground in found]
    assert grounds == sorted(grounds, reverse=True)
    assert len(set(grounds)) == 10


def test_the_theme_follows_the_system_until_one_is_chosen_and_the_choice_stays(page: Page, mock: Mock) -> None:
    def colour() -> str:
        return str(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    page.emulate_media(color_scheme="light")
    visit(page, mock.url)
    light = colour()
    page.emulate_media(color_scheme="dark")
    dark = colour()
    assert light != dark
    page.click("#theme")
    assert colour() == light
    page.reload()
    assert colour() == light
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    assert colour() == dark
    page.click("#theme")
    assert colour() == light


def test_a_replay_plays_by_itself_and_can_be_paused(browser: Browser, mock: Mock) -> None:
    """The page's clock goes on when it is told to."""
    page = browser.new_page(viewport={"width": 1440, "height": 900}, reduced_motion="no-preference")
    visit(page, mock.url)
    ask(page, "Hello")
    page.select_option("#speed", "4")
    expect(page.locator("#play")).to_have_accessible_name("Play again")
    assert masks(cells(page)) == 64
    page.clock.install()
    page.clock.pause_at(page.evaluate("() => Date.now() + 1000"))
    page.click("#play")
    expect(page.locator("#play")).to_have_accessible_name("Pause")
    assert int(page.input_value("#slider")) == 0
    page.clock.run_for(500)
    step = int(page.input_value("#slider"))
    assert 0 < step < steps(page)
    page.click("#play")
    expect(page.locator("#play")).to_have_accessible_name("Play")
    page.clock.run_for(60_000)
    assert int(page.input_value("#slider")) == step
    page.click("#play")
    page.clock.run_for(60_000)
    expect(page.locator("#play")).to_have_accessible_name("Play again")
    page.close()


def test_with_reduced_motion_nothing_is_animated(page: Page, mock: Mock) -> None:
    visit(page, mock.url)
    ask(page, "Hello")
    expect(page.locator("#play")).to_have_accessible_name("Play again")
    assert page.evaluate("() => document.getAnimations().length") == 0


def test_a_step_on_a_canvas_of_1024_positions_paints_what_it_changes_alone(page: Page, mock: Mock) -> None:
    """Cells revealed by the step, and those of the step before, which are new no longer."""
    mock.length, mock.answer = 1024, (mock.answer + "\n") * 18
    visit(page, mock.url)
    ask(page, "Hello")
    assert len(cells(page)) == 1024
    assert steps(page) > 100
    painted = page.locator("#slider").evaluate("""(slider) => {
      const observer = new MutationObserver(() => {});
      const all = { subtree: true, childList: true, attributes: true };
      observer.observe(document.querySelector('.lane'), all);
      const counts = [];
      for (let step = 0; step <= 100; step += 1) {
        slider.value = step;
        slider.dispatchEvent(new Event('input', { bubbles: true }));
        const cells = observer.takeRecords().map((record) => record.target.closest('.cell'));
        counts.push(new Set(cells.filter((cell) => cell !== null)).size);
      }
      return counts;
    }""")
    assert min(painted) > 0
    assert max(painted[1:]) <= 32


def test_edited_and_inserted_tokens_are_replayed(page: Page, mock: Mock) -> None:
    mock.events = [
        {"event": "start", "prompt_tokens": 3, "gen_length": 8, "block_length": 4, "algorithm": "x", "seed": 1},
        {"event": "step", "step": 1, "block": 0, "revealed": [[0, "a", 0.5], [1, "b", 0.9]], "cleared": []},
        {"event": "step", "step": 3, "block": 0, "revealed": [[0, "z", 0.9]], "cleared": [1], "inserted": [1, 4]},
        {"event": "step", "step": 4, "block": 1, "revealed": [[5, "q", 0.7]], "cleared": []},
        {"event": "end", "nfe": 4, "tokens_per_forward": 0.5, "seconds": 1.0, "tokens_per_second": 2.0, "seed": 1},
    ]
    visit(page, mock.url)
    ask(page, "Hello")

    def shown(step: int) -> list[str]:
        page.locator("#slider").fill(str(step))
        return page.locator(".lane .cell:visible").evaluate_all("(all) => all.map((one) => one.textContent)")

    assert steps(page) == 4
    assert shown(1) == ["a", "b", *[""] * 6]
    assert shown(2) == ["a", "b", *[""] * 6]
    assert shown(3) == ["z", *[""] * 11]
    expect(page.locator(".cell.edited")).to_have_text("z")
    assert shown(4) == ["z", "", "", "", "", "q", *[""] * 6]
    assert shown(0) == [""] * 8


def test_the_parameters_open_and_close_by_key(page: Page, mock: Mock) -> None:
    visit(page, mock.url)
    page.focus("#panel-toggle")
    page.keyboard.press("Enter")
    expect(page.locator("#panel")).to_be_visible()
    expect(page.locator("#panel-close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    expect(page.locator("#panel-toggle")).to_be_focused()
