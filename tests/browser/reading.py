"""What a person does on the page and reads off it."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, Request, expect


def visit(page: Page, url: str) -> None:
    """Open the page and wait until something can be sent."""
    page.goto(url)
    expect(page.locator("#send")).to_be_enabled()


def ask(page: Page, text: str) -> None:
    """Send a message and wait until the answer is there, or has failed, and its canvas is drawn."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    answered(page)


def answered(page: Page) -> None:
    expect(page.locator(".answer[aria-busy=true]")).to_have_count(0)
    expect(page.locator("#stop")).to_be_hidden()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def seek(page: Page, step: int) -> None:
    page.locator("#slider").evaluate(
        "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input', { bubbles: true })); }", step
    )


def steps(page: Page) -> int:
    return int(page.locator("#slider").get_attribute("max") or 0)


def cells(page: Page, lane: int = 0) -> list[str]:
    """Labels of the cells of a canvas, by position."""
    return (
        page.locator(".lane")
        .nth(lane)
        .locator(".cell")
        .evaluate_all("(cells) => cells.map((cell) => cell.getAttribute('aria-label'))")
    )


def masks(labels: list[str]) -> int:
    return sum(label.endswith(": mask") for label in labels)


def figure(page: Page, name: str, lane: int = 0) -> str:
    """The value beside a figure's name."""
    found = page.locator(".lane").nth(lane).locator(".figures div").filter(has=page.locator(f"dt:text-is('{name}')"))
    return found.locator("dd").inner_text()


def sent(page: Page) -> list[dict[str, Any]]:
    """Bodies of the chats that the page sends from here on."""
    bodies: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.method == "POST":
            bodies.append(request.post_data_json)

    page.on("request", note)
    return bodies
