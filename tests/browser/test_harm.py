"""What the page does when the server does not do what it should, and with output that is not meant well."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.mock_server import Mock
from tests.browser.reading import answered, ask, cells, masks, sent, visit
from tests.running import wait_until

pytestmark = pytest.mark.browser

FAULTS = {
    "400": ("The server did not accept the request", "block_length=7 must be 1..4", "Change block_length"),
    "429": ("The server is busy", "32 requests wait already.", "Try again in 3 s."),
    "plain": ("The server is not ready", "No available workers", "Try again"),
    "mid_stream": ("The server stopped in the middle of the answer", "out of memory", "is kept above"),
    "lost": ("The connection was lost", "before its last chunk", "is kept above"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_told_where_it_happened_with_what_to_do_and_trying_again_helps(
    page: Page, mock: Mock, fault: str
) -> None:
    visit(page, mock.url)
    mock.fault = fault
    ask(page, "Hello")
    for words in FAULTS[fault]:
        expect(page.locator(".turn .problem-box")).to_contain_text(words)
    mock.fault = None
    page.get_by_role("button", name="Try again").click()
    answered(page)
    expect(page.locator(".turn")).to_have_count(1)
    expect(page.locator(".problem-box:visible")).to_have_count(0)
    assert page.locator(".answer-text").inner_text().startswith("A photograph")


def test_what_had_arrived_before_a_failure_stays_on_the_canvas(page: Page, mock: Mock) -> None:
    visit(page, mock.url)
    mock.fault = "lost"
    ask(page, "Hello")
    assert 0 < masks(cells(page)) < len(cells(page))


def test_without_a_server_the_page_says_so(page: Page, mock: Mock) -> None:
    page.route("**/v1/**", lambda route: route.abort())
    page.goto(mock.url)
    expect(page.locator("#notice")).to_contain_text("No connection to the server")
    expect(page.locator("#send")).to_be_disabled()
    page.unroute("**/v1/**")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#notice")).to_be_hidden()


def test_stop_ends_the_request_and_keeps_what_there_is(page: Page, mock: Mock) -> None:
    mock.stands_after = 6
    visit(page, mock.url)
    page.fill("#prompt", "Hello")
    page.press("#prompt", "Enter")
    expect(page.locator(".cell[data-level]").first).to_be_visible()
    page.click("#stop")
    answered(page)
    expect(page.locator(".caption")).to_contain_text("stopped")
    expect(page.locator("#send")).to_be_visible()
    assert 0 < masks(cells(page)) < len(cells(page))
    wait_until(lambda: mock.disconnects == 1, "the request was ended")


def test_the_key_is_asked_for_kept_in_the_tab_and_sent_as_bearer(page: Page, mock: Mock) -> None:
    mock.fault = "401"
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(mock.url)
    for key, reason in (("wrong", "was started with"), ("sesame", "is not the right one")):
        expect(page.locator("#key-reason")).to_contain_text(reason)
        page.fill("#key", key)
        page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#key-dialog")).to_be_hidden()
    ask(page, "Hello")
    assert page.locator(".answer-text").inner_text()
    assert not any("sesame" in url for url in (*urls, page.url))
    assert page.evaluate("() => sessionStorage.getItem('dlm-key')") == "sesame"
    assert page.evaluate("() => JSON.stringify(localStorage)") == "{}"
    assert "sesame" not in page.content()


def test_a_key_that_is_no_longer_taken_is_asked_for_again(page: Page, mock: Mock) -> None:
    visit(page, mock.url)
    mock.fault = "401"
    page.fill("#prompt", "Hello")
    page.press("#prompt", "Enter")
    expect(page.locator("#key-dialog")).to_be_visible()
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    expect(page.locator(".answer-text")).to_contain_text("A photograph")
    expect(page.locator(".turn")).to_have_count(1)


def test_markup_in_an_answer_stays_text(page: Page, mock: Mock) -> None:
    mock.answer = '<img src=x onerror="document.title=1"> <script>document.title = 2</script> &amp; <b>bold</b>'
    visit(page, mock.url)
    ask(page, "<b>mine</b>")
    assert page.locator(".answer-text").inner_text() == mock.answer
    assert page.locator(".asked").inner_text().endswith("<b>mine</b>")
    assert page.locator("#messages :is(img, script, b), #lanes :is(img, script, b.x)").count() == 0
    assert page.title() == "dlm"


def test_white_space_and_tokens_of_control_are_seen(page: Page, mock: Mock) -> None:
    mock.answer = "one\n two"
    visit(page, mock.url)
    ask(page, "Hello")
    shown = page.locator(".lane .cell").evaluate_all("(all) => all.slice(0, 3).map((one) => one.textContent)")
    assert shown == ["one", "⏎", "·two"]
    labels = cells(page)
    assert "“⏎” (white space)" in labels[1]
    assert "<|endoftext|> (special token)" in labels[3]
    expect(page.locator(".lane .cell.end")).to_have_count(29)


def test_a_value_out_of_range_is_named_and_not_sent(page: Page, mock: Mock) -> None:
    bodies = sent(page)
    visit(page, mock.url)
    page.click("#panel-toggle")
    page.fill("#field-block_length", "0")
    expect(page.locator("#field-block_length-problem")).to_be_visible()
    page.fill("#prompt", "Hello")
    page.press("#prompt", "Enter")
    expect(page.locator("#field-block_length")).to_be_focused()
    assert bodies == []
